"""A stock that needs no fonts or word lists of the machine: Pillow's own face and a few words."""

from pathlib import Path

import pytest
from PIL import ImageFont

from demo.checkpoint import DEMO, Shape, anyres_of
from demo.draw import TRAINING_BACKGROUNDS
from demo.fonts import Face, Family
from demo.pages import TRAINING_LAYOUTS
from demo.render import Stock
from demo.words import Lexicon

WORDS = ("bread", "harbour", "little", "Monday's", "night", "open", "platform", "quiet", "ticket", "window")


@pytest.fixture(scope="session")
def family(tmp_path_factory: pytest.TempPathFactory) -> Family:
    path = tmp_path_factory.mktemp("fonts") / "face.ttf"
    font = ImageFont.load_default(20)
    assert isinstance(font, ImageFont.FreeTypeFont)
    path.write_bytes(font.font_bytes)
    return Family(name="face", upright=(Face(family="face", style="Regular", path=str(path)),), slanted=())


@pytest.fixture(scope="session")
def stock(family: Family) -> Stock:
    return stock_of(family, DEMO)


def stock_of(family: Family, shape: Shape) -> Stock:
    return Stock(
        anyres=anyres_of(shape),
        families=(family,),
        lexicon=Lexicon(words=WORDS),
        layouts=TRAINING_LAYOUTS,
        backgrounds=TRAINING_BACKGROUNDS,
    )
