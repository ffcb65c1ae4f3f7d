"""The stage of a pipeline of one's own: columns in, columns out, errors as columns; rows in are rows out."""

import io

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from PIL import Image

from llava_batch.settings import Settings
from llava_batch.stage import Caption, Stage
from schemas.answer import ANSWER_SCHEMA
from schemas.errors import Refused
from schemas.job import JobSettings
from tests.fakes import load_echo_engine
from tests.images import encoded, noise
from tests.inputs import bad_row, good_row, picture
from tests.tiny import checkpoint


def stage(prefix: str = "", **settings: object) -> Stage:
    base = {"input": ("-",), "output": "-", "model": str(checkpoint())}
    return Stage(JobSettings.model_validate({**base, **settings}), prefix, load_echo_engine)


def rows(*numbers: int) -> pa.Table:
    return pa.Table.from_pylist([bad_row(n, "decode") if n == 1 else good_row(n) for n in numbers])


def test_a_row_keeps_its_columns_and_gets_those_of_its_answer() -> None:
    answered = stage()(rows(0, 1, 2))
    assert answered.column_names == [*rows(0).column_names, *(n for n in ANSWER_SCHEMA.names if n != "id")]
    assert answered["number"].to_pylist() == [0, 1, 2]
    assert answered["text"].to_pylist()[0].startswith("What is number 0?")
    assert answered["status"].to_pylist() == ["ok", "error", "ok"]
    assert answered["error_type"].to_pylist() == [None, "BrokenImage", None]
    assert answered["error_stage"].to_pylist() == [None, "decode", None]


def test_every_prompt_of_a_row_is_a_row() -> None:
    answered = stage(prompt=("one=Q1?", "two=Q2 {number}?"))(rows(0, 2))
    assert answered["number"].to_pylist() == [0, 0, 2, 2]
    assert answered["prompt_id"].to_pylist() == ["one", "two"] * 2
    assert [text.split("?")[0] for text in answered["text"].to_pylist()] == ["Q1", "Q2 0", "Q1", "Q2 2"]


def test_rows_that_ask_nothing_are_asked_for_a_caption() -> None:
    answered = stage()(rows(0).select(["image"]))
    assert answered["prompt"].to_pylist() == ["Describe the image in more details."]


@pytest.mark.parametrize("kind", ["numpy", "pandas"])
def test_other_batches_come_back_as_they_are(kind: str) -> None:
    columns = {
        "image": np.array([picture(0), b"none"], object),
        "vector": np.arange(6.0).reshape(2, 3),
        "thing": np.array([{1, 2}, object()], object),
    }
    batch = columns if kind == "numpy" else pd.DataFrame({name: list(values) for name, values in columns.items()})
    answered = stage(prompt=("Q?",))(batch)
    assert type(answered) is type(batch)
    assert list(answered["status"]) == ["ok", "error"]
    assert list(answered["num_tiles"])[1] is None
    assert np.stack(list(answered["vector"])).tolist() == columns["vector"].tolist()
    assert list(answered["thing"]) == list(columns["thing"])


def test_pixels_are_images() -> None:
    pixels = np.zeros((2, 30, 50, 3), np.uint8)
    ragged = np.empty(2, object)
    ragged[:] = [pixels[0], pixels[1, :20]]
    assert [text[-5:] for text in stage()({"image": pixels})["text"]] == ["50x30", "50x30"]
    assert [text[-5:] for text in stage()({"image": ragged})["text"]] == ["50x30", "50x20"]


def torn_picture() -> Image.Image:
    """An image as `Image.open` gives it, of a file that ends in its middle: nobody has looked yet."""
    data = encoded(noise(200, 200), "JPEG")
    return Image.open(io.BytesIO(data[: len(data) // 2]))


@pytest.mark.parametrize("kind", ["numpy", "pandas"])
@pytest.mark.parametrize(
    ("bad", "type"),
    [
        pytest.param(torn_picture(), "BrokenImage", id="torn"),
        pytest.param(np.zeros((0, 4, 3), np.uint8), "NotAnImage", id="no pixels"),
        pytest.param(np.zeros((4, 4, 5), np.uint8), "NotAnImage", id="five channels"),
        pytest.param([noise(30, 20), torn_picture()], "BrokenImage", id="one of several"),
    ],
)
def test_what_is_no_picture_is_an_error_row_beside_pictures(kind: str, bad: object, type: str) -> None:
    images = np.empty(3, object)
    images[0], images[1], images[2] = noise(30, 20), bad, noise(20, 30)
    if isinstance(bad, list):
        images[0], images[2] = [images[0]], [images[2]]
    batch = {"image": images} if kind == "numpy" else pd.DataFrame({"image": list(images)})
    answered = stage(prompt=("Q?",))(batch)
    assert list(answered["status"]) == ["ok", "error", "ok"]
    assert (answered["error_stage"][1], answered["error_type"][1]) == ("decode", type)
    assert list(answered["prompt"]) == ["Q?"] * 3
    assert list(answered["image"])[1] is bad


def test_pixels_that_nothing_is_asked_of_pass_through() -> None:
    batch = {"image": np.zeros((2, 30, 50, 3), np.uint8), "video": np.zeros((2, 3, 4, 4, 3), np.uint8)}
    answered = stage(prompt=("Q?",))(batch)
    assert list(answered["status"]) == ["ok", "ok"]
    assert answered["video"].shape == (2, 3, 4, 4, 3)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        pytest.param(
            [np.zeros((4, 4, 5), np.uint8)], "column 'image' is no image column: an image's array must be", id="all"
        ),
        pytest.param(
            [noise(3, 3), 7], "column 'image' is no image column: Expected bytes, got a 'int' object", id="kinds"
        ),
    ],
)
def test_a_column_that_can_be_no_image_is_refused_with_the_reason(values: list[object], said: str) -> None:
    images = np.empty(len(values), object)
    for row, value in enumerate(values):
        images[row] = value
    with pytest.raises(Refused, match=f"no image column found.*{said}"):
        stage(prompt=("Q?",))({"image": images})


def test_a_batch_without_rows_has_the_columns_of_answers() -> None:
    assert stage()(rows(0).slice(0, 0)).column_names == stage()(rows(0)).column_names


@pytest.mark.parametrize(
    ("settings", "columns", "message"),
    [
        pytest.param({}, ["question"], "no image column found, set --image-column", id="no image"),
        pytest.param({"image_column": "imag"}, ["image"], "did you mean 'image'", id="a near name"),
        pytest.param({"temperature": 1.0}, ["image"], "temperature above 0 needs an id column", id="sampling"),
    ],
)
def test_columns_that_do_not_do_are_refused(settings: dict[str, object], columns: list[str], message: str) -> None:
    with pytest.raises(Refused, match=message):
        stage(**settings)(rows(0).select(columns))


def test_a_column_is_never_replaced() -> None:
    batch = rows(0).append_column("text", pa.array(["its own"]))
    with pytest.raises(Refused, match="the batch has a column 'text' already: give the answers a prefix"):
        stage()(batch)
    answered = stage(prefix="llava_")(batch)
    assert answered["text"].to_pylist() == ["its own"]
    assert answered["llava_text"].to_pylist()[0].startswith("What is number 0?")


@pytest.mark.parametrize("setting", [{"keep": "url"}, {"limit": 3}, {"reference_column": "truth"}])
def test_a_setting_of_a_run_alone_is_refused(setting: dict[str, object]) -> None:
    with pytest.raises(Refused, match="is a run's alone"):
        Caption(Settings(**setting))
