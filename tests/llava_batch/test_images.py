"""Images as Python has them become what a row names, with the same pixels."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from llava_batch.images import encoded, pictures_in, reference
from schemas.errors import Refused
from tests.images import noise


def decoded(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 3), (4, 5, 4)])
def test_pixels_stay_as_they_are(shape: tuple[int, ...]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    assert (decoded(encoded(pixels)) == pixels).all()
    assert (decoded(encoded(Image.fromarray(pixels))) == pixels).all()


def test_an_image_of_one_grey_channel_is_one_of_none() -> None:
    pixels = np.arange(20, dtype=np.uint8).reshape(4, 5, 1)
    assert (decoded(encoded(pixels)) == pixels[..., 0]).all()


def test_an_image_that_was_turned_is_upright() -> None:
    image, exif = noise(40, 20), Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    file = io.BytesIO()
    image.save(file, "JPEG", exif=exif)
    assert decoded(encoded(Image.open(file))).shape[:2] == (40, 20)


@pytest.mark.parametrize("pixels", [np.zeros((2, 2)), np.zeros((2, 2, 2), np.uint8), np.zeros((0, 3, 3), np.uint8)])
def test_an_array_that_is_no_picture_is_refused(pixels: np.ndarray) -> None:
    with pytest.raises(Refused, match="must be uint8 pixels of"):
        encoded(pixels)


def test_a_row_has_no_image_or_one_or_several() -> None:
    assert pictures_in(None) == []
    assert pictures_in("a.png") == ["a.png"]
    assert pictures_in(["a.png", b"x", Path("b.png")]) == ["a.png", b"x", Path("b.png")]
    with pytest.raises(Refused, match="an image must be a path"):
        pictures_in(3)


def test_paths_begin_here_and_urls_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert reference("a.png").uri == str(tmp_path / "a.png")
    assert reference(Path("b.png")).uri == str(tmp_path / "b.png")
    assert reference("https://example.org/a.png").uri == "https://example.org/a.png"
    assert reference("data:image/png;base64,AAAA").uri == "data:image/png;base64,AAAA"
