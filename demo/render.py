"""One random picture with all that is true of it: a page of text, a scene of shapes, both, or nothing."""

import math
import random
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from demo import draw, effects, pages, scenes
from demo.draw import Box, Canvas, Colour, Letter
from demo.fonts import HELD_OUT_FAMILIES, TRAINING_FAMILIES, Family, find_faces
from demo.questions import Content
from demo.words import MAX_LINE, Lexicon, read_lexicon
from pipeline.preprocess.geometry import Anyres, scaled_size, select_grid
from schemas.sample import Size

LEAST_EM = 15.0  # pixels of the scaled picture that the tiles are cut from: what is promised to be read
TINY_EM = 12.5  # what is measured apart
LEAST_EM_SOURCE = 10  # pixels of the picture itself
LEAST_SHAPE = 16  # pixels of the scaled picture
TOP, MIDDLE, BOTTOM = (0, 1, 2), (3, 4, 5), (6, 7, 8)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stock:
    """What pictures are made of; training and held-out stock have no face, word or layout in common."""

    anyres: Anyres
    families: tuple[Family, ...]
    lexicon: Lexicon
    layouts: tuple[str, ...]
    backgrounds: tuple[str, ...]
    least_em: float = LEAST_EM


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A rendered picture and its truth."""

    image: Image.Image
    content: Content
    letters: tuple[Letter, ...]
    smallest_em: float = 0.0  # of its text, in pixels of the scaled picture


def training_stock(anyres: Anyres, fonts: Path, words: list[Path]) -> Stock:
    """What training sees."""
    return Stock(
        anyres=anyres,
        families=find_faces(fonts, TRAINING_FAMILIES),
        lexicon=read_lexicon(words, held_out=False),
        layouts=pages.TRAINING_LAYOUTS,
        backgrounds=draw.TRAINING_BACKGROUNDS,
        least_em=0.5 * (LEAST_EM + TINY_EM),
    )


def held_out_stock(anyres: Anyres, fonts: Path, words: list[Path]) -> Stock:
    """What scores are measured on."""
    return Stock(
        anyres=anyres,
        families=find_faces(fonts, HELD_OUT_FAMILIES),
        lexicon=read_lexicon(words, held_out=True),
        layouts=pages.HELD_OUT_LAYOUTS,
        backgrounds=draw.HELD_OUT_BACKGROUNDS,
    )


def render(rng: random.Random, stock: Stock, level: float) -> Picture:
    """A random picture; `level` 0 to 1 is how hard: more and longer lines, smaller letters, more effects."""
    kind = rng.random()
    if kind < 0.60:
        return render_page(rng, stock, level)
    if kind < 0.86:
        return render_scene(rng, stock, level)
    if kind < 0.96:
        return render_both(rng, stock, level)
    return render_nothing(rng, stock, level)


def render_page(rng: random.Random, stock: Stock, level: float) -> Picture:
    """Printed text alone."""
    size = _page_size(rng)
    colour = draw.random_colour(rng)
    canvas = draw.new_canvas(rng, size.width, size.height, colour, stock.backgrounds)
    layout = rng.choice(stock.layouts)
    region, paper = pages.decorate(rng, canvas, layout, colour)
    text = _set_text(rng, stock, size, region, level)
    ink = draw.contrasting(rng, paper, 75)
    printer = pages.print_columns if layout == "receipt" else pages.print_text
    printer(rng, canvas, text, region, ink)
    picture = _finish(rng, canvas, Content(lines=text.lines), colour, level)
    return replace(picture, smallest_em=min(text.sizes) * _scale(stock.anyres, size))


def render_scene(rng: random.Random, stock: Stock, level: float) -> Picture:
    """Shapes alone."""
    size = _scene_size(rng)
    marks = scenes.choose_marks(rng, 2 if level < 0.2 else 4, range(9))
    colour = scenes.backdrop(rng, marks)
    canvas = draw.new_canvas(rng, size.width, size.height, colour, stock.backgrounds)
    scenes.draw_marks(rng, canvas, marks, LEAST_SHAPE / _scale(stock.anyres, size))
    return _finish(rng, canvas, Content(marks=tuple(marks)), colour, level)


def render_both(rng: random.Random, stock: Stock, level: float) -> Picture:
    """Shapes in two thirds of the picture, text in the upper or lower third."""
    size = _scene_size(rng)
    above = rng.random() < 0.5
    marks = scenes.choose_marks(rng, 2 if level < 0.2 else 4, (*MIDDLE, *(BOTTOM if above else TOP)))
    colour = scenes.backdrop(rng, marks)
    canvas = draw.new_canvas(rng, size.width, size.height, colour, stock.backgrounds)
    scenes.draw_marks(rng, canvas, marks, LEAST_SHAPE / _scale(stock.anyres, size))
    third = size.height / 3
    region = Box(
        left=0.04 * size.width,
        top=0.04 * size.height + (0 if above else 2 * third),
        width=0.92 * size.width,
        height=third - 0.08 * size.height,
    )
    text = _set_text(rng, stock, size, region, level)
    pages.print_text(rng, canvas, text, region, draw.contrasting(rng, colour, 75))
    return _finish(rng, canvas, Content(marks=tuple(marks), lines=text.lines), colour, level)


def render_nothing(rng: random.Random, stock: Stock, level: float) -> Picture:
    """A background, with or without what usually surrounds text."""
    size = _page_size(rng)
    colour = draw.random_colour(rng)
    canvas = draw.new_canvas(rng, size.width, size.height, colour, stock.backgrounds)
    if rng.random() < 0.6:
        pages.decorate(rng, canvas, rng.choice(stock.layouts), colour)
    return _finish(rng, canvas, Content(), colour, level)


def _set_text(rng: random.Random, stock: Stock, size: Size, region: Box, level: float) -> pages.Text:
    scale = _scale(stock.anyres, size)
    tiles_em = stock.least_em + 12 * (1 - level)
    demand = pages.Demand(
        most_lines=1 + round((pages.MAX_LINES - 1) * level),
        longest=round(4 + (MAX_LINE - 4) * level),
        least_em=max(tiles_em / scale, LEAST_EM_SOURCE),
    )
    return pages.set_text(rng, stock.families, stock.lexicon, region, demand)


def _finish(rng: random.Random, canvas: Canvas, content: Content, colour: Colour, level: float) -> Picture:
    effects.distort(rng, canvas, colour, level)
    return Picture(image=canvas.image, content=content, letters=tuple(canvas.letters))


def _scale(anyres: Anyres, size: Size) -> float:
    """Pixels of the scaled picture for each of the picture's own."""
    return scaled_size(size, select_grid(size, anyres)).width / size.width


def _page_size(rng: random.Random) -> Size:
    """Photos and scans of all sizes, strips, tall receipts, small signs."""
    kind = rng.random()
    if kind < 0.2:
        aspect = math.exp(rng.uniform(math.log(2), math.log(9)))
    elif kind < 0.35:
        aspect = 1 / math.exp(rng.uniform(math.log(2), math.log(3.5)))
    else:
        aspect = math.exp(rng.uniform(-0.7, 0.7))
    return _sized(rng, aspect)


def _scene_size(rng: random.Random) -> Size:
    return _sized(rng, math.exp(rng.uniform(-0.8, 0.8)))


def _sized(rng: random.Random, aspect: float) -> Size:
    side = math.exp(rng.uniform(math.log(130), math.log(560)))
    if rng.random() < 0.04:
        side = rng.uniform(640, 1200)
    width, height = side * math.sqrt(aspect), side / math.sqrt(aspect)
    return Size(max(40, min(1600, round(width))), max(40, min(1600, round(height))))
