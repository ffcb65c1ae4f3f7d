"""A model in this process: an answer to every row, in order, and an error where there is none."""

import io
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

from llava_batch.model import Model
from llava_batch.settings import Settings
from schemas.errors import Refused
from tests.images import encoded, noise
from tests.tiny import checkpoint


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    with Model.load(Settings(model=str(checkpoint()), max_new_tokens=6)) as loaded:
        yield loaded


def torn() -> Image.Image:
    """An image as `Image.open` gives it, of a file that ends in its middle."""
    data = encoded(noise(200, 200), "JPEG")
    return Image.open(io.BytesIO(data[: len(data) // 2]))


def test_every_row_is_answered_as_if_it_were_alone(model: Model) -> None:
    rows = [noise(30, 20), [noise(20, 30), noise(9, 9)], None, np.asarray(noise(40, 40))]
    asked = ["What?", "Which?", "Hello!", "Where?"]
    together = model.generate(rows, asked)
    alone = [model.generate([row], prompt)[0] for row, prompt in zip(rows, asked, strict=True)]
    assert [one.text for one in together] == [one.text for one in alone]
    assert [one.status for one in together] == ["ok"] * 4
    assert [(one.id, one.prompt) for one in together[:2]] == [("0", "What?"), ("1", "Which?")]


def test_one_image_is_one_row_however_it_is_given(model: Model) -> None:
    picture = noise(30, 20)
    file = io.BytesIO()
    picture.save(file, "PNG")
    (answer,) = model.generate(picture, "What?")
    assert [one.text for one in model.generate(file.getvalue(), "What?")] == [answer.text]
    assert [one.text for one in model.generate(np.asarray(picture), "What?")] == [answer.text]


@pytest.mark.parametrize("bad", [torn(), [noise(9, 9), torn()]], ids=["alone", "one of several"])
def test_a_torn_picture_is_an_answer_with_an_error(model: Model, bad: object) -> None:
    first, failed, last = model.generate([noise(30, 20), bad, noise(20, 30)], "What?")
    assert (failed.status, failed.error_stage, failed.error_type, failed.prompt) == (
        "error", "decode", "BrokenImage", "What?"
    )  # fmt: skip
    assert "truncated" in str(failed.error_message)
    assert [first.status, last.status] == ["ok", "ok"]


@pytest.mark.parametrize(
    ("images", "prompts", "message"),
    [
        pytest.param([noise(9, 9)] * 2, ["What?"], "one text, or one for each of 2 images, got 1", id="counts"),
        pytest.param([np.zeros((4, 4, 3))], "What?", "must be uint8 pixels of", id="floats"),
        pytest.param([7], "What?", "an image must be a path, a URL, bytes", id="a number"),
    ],
)  # fmt: skip
def test_what_is_no_picture_at_all_is_refused(
    model: Model, images: list[object], prompts: object, message: str
) -> None:
    with pytest.raises(Refused, match=message):
        model.generate(images, prompts)
    assert model.generate([]) == []
