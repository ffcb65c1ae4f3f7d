"""The bundled pictures: every file has its truth and opens through the pipeline."""

import json

import pytest

from demo.pictures import BROKEN, FOLDER, PAGES, SCENES
from pipeline.preprocess.image import ImageLimits, decode
from schemas.errors import RowError

TRUTH = json.loads((FOLDER / "truth.json").read_text())


def test_every_file_has_its_truth() -> None:
    files = {path.name for path in FOLDER.iterdir()} - {"truth.json"}
    assert files == set(TRUTH)
    assert len(files) == 24


def test_only_the_broken_file_cannot_be_decoded() -> None:
    failed = []
    for file in TRUTH:
        try:
            decode((FOLDER / file).read_bytes(), ImageLimits())
        except RowError:
            failed.append(file)
    assert failed == [file for file, prompts in TRUTH.items() if not prompts] == [BROKEN]


@pytest.mark.parametrize("picture", [*PAGES, *SCENES], ids=lambda picture: picture.file)
def test_a_picture_stands_upright_in_the_size_it_was_drawn(picture: object) -> None:
    image = decode((FOLDER / picture.file).read_bytes(), ImageLimits())
    assert (image.width, image.height) == (picture.size.width, picture.size.height)
