"""What is lost and what is doubled where a page is read in strips: pages of many kinds, and a reader without faults.

    python -m benchmarks.strips

The reader reads every line that is whole in a strip, and half of one that a border runs through, with letters wrong.
Where a strip shows several columns it reads across them. Every line of print that is read in no strip, or that joining
drops, is lost; one that is there twice is doubled; one that the longest part of the text in the page's own order does
not have is out of order. The last line of stdout is one JSON object.
"""

import io
import json
import random
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from rapidfuzz.distance import LCSseq

from demo.checkpoint import DEMO, anyres_of
from pipeline.preprocess.geometry import Anyres
from pipeline.preprocess.strips import cut_page
from pipeline.stages.strips import join_texts
from schemas.sample import Size, Strip

_LEADING, _LEFT, _TOP = 44, 24, 20  # of the demo model's pages
_FONT, _GUTTER = 28, 60
PUBLISHED = Anyres(
    tile=336, patch=14, grids=tuple(Size(336 * w, 336 * h) for h, w in ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3)))
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A line of print and the rectangle that its letters fill."""

    text: str
    left: int
    top: int
    right: int
    bottom: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """Lines of pages, and what became of them."""

    pages: int = 0
    strips: int = 0
    overlaps: int = 0
    lines: int = 0
    lost: int = 0
    doubled: int = 0
    out_of_order: int = 0

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(**{name: getattr(self, name) + getattr(other, name) for name in Counts.__slots__})


TEXTS: dict[str, Callable[[random.Random, int], str]] = {
    "dated": lambda rng, i: f"2024-01-{1 + i // 24:02d} {i % 24:02d}:00 {rng.choice(('OK', 'no', 'up'))}",
    "numbered": lambda rng, i: f"Item {i:02d} 0.00 0.00",
    "equal": lambda rng, i: "0.00 0.00 0.00",
    "unique": lambda rng, i: " ".join("".join(rng.choices("abdegilmnoprstuy", k=rng.randint(3, 7))) for _ in range(3)),
    "accented": lambda rng, i: rng.choice(("GRÖSSE ÜBER ÄMTER", "ÖFEN ÄRZTE ÜBUNG", "ÉTÉ À NÎMES")) + f" {i}",
}
FRAMES = ("plain", "framed", "ruled", "grid", "shaded", "striped", "pale", "jpeg", "two columns", "textured")


def draw_page(frame: str, texts: Sequence[str], width: int = 460) -> tuple[Image.Image, list[Line]]:
    """Lines on a page of a kind, and where they stand, in the order in which they are to be read."""
    if frame == "two columns":
        return _draw_columns(texts)
    size = (width, 2 * _TOP + _LEADING * len(texts))
    page = _noise(size) if frame == "textured" else Image.new("RGB", size, "white")
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(size=_FONT)
    _decorate(pen, frame, len(texts), page.size)
    lines = []
    for number, text in enumerate(texts):
        fill = "#dcdcdc" if frame == "pale" and number % 2 else "black"
        lines.append(_draw_line(pen, font, (_LEFT, _TOP + _LEADING * number), text, fill))
    return (_recompressed(page) if frame == "jpeg" else page), lines


def _draw_columns(texts: Sequence[str]) -> tuple[Image.Image, list[Line]]:
    """The lines in two columns, the second a little lower, below a heading across both and above a page number."""
    font, half = ImageFont.load_default(size=_FONT), (len(texts) + 1) // 2
    width = int(max(font.getlength(f"{text} 00") for text in texts)) + _GUTTER
    size = (2 * width, 2 * _TOP + _LEADING * (half + 3))
    page = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(page)
    lines = [_draw_line(pen, font, (_LEFT, _TOP), "A heading across both columns", "black")]
    for number, text in enumerate(texts):
        column, row = divmod(number, half)
        at = (_LEFT + width * column, _TOP + _LEADING * (row + 2) + 5 * column)
        lines.append(_draw_line(pen, font, at, f"{text} {number}", "black"))
    return page, [*lines, _draw_line(pen, font, (width, size[1] - _LEADING), "17", "black")]


def _draw_line(
    pen: ImageDraw.ImageDraw,
    font: ImageFont.ImageFont | ImageFont.FreeTypeFont,
    at: tuple[int, int],
    text: str,
    fill: str,
) -> Line:
    pen.text(at, text, fill=fill, font=font)
    left, top, right, bottom = map(int, pen.textbbox(at, text, font=font))
    return Line(text=text, left=left, top=top, right=right, bottom=bottom)


def read_page(page: Image.Image, lines: Sequence[Line], anyres: Anyres) -> Counts:
    """Cut a page, read its strips without a fault, join what was read, and compare it with what is printed."""
    spans = cut_page(page, anyres)
    strips = [Strip(top=span.top, bottom=span.bottom, left=span.left, right=span.right, num_tiles=1) for span in spans]
    texts = ["\n".join(_read(lines, strip)) for strip in strips]
    printed = [line.text for line in lines]
    joined = join_texts(texts, strips).split("\n") if strips else printed
    truth, found = Counter(printed), Counter(joined)
    pairs = list(zip(strips, strips[1:], strict=False))
    overlaps = sum(below.top < above.bottom for above, below in pairs if below.left == above.left)
    lost = (truth - found).total()
    return Counts(
        pages=1,
        strips=len(strips),
        overlaps=overlaps,
        lines=len(lines),
        lost=lost,
        doubled=(found - truth).total(),
        out_of_order=len(printed) - lost - LCSseq.similarity(printed, joined),
    )


def _read(lines: Sequence[Line], strip: Strip) -> Iterator[str]:
    """The lines that a strip shows, from top to bottom, and where several stand side by side from left to right."""
    for line in sorted(lines, key=lambda line: (line.top // _LEADING, line.left)):
        shown = min(line.bottom, strip.bottom) - max(line.top, strip.top)
        if not strip.left <= line.left < (strip.right or line.right):
            continue
        if shown == line.bottom - line.top:
            yield line.text
        elif shown * 3 > line.bottom - line.top:
            yield line.text.translate(str.maketrans("aeo05b", "oaceh6"))


def _decorate(pen: ImageDraw.ImageDraw, frame: str, count: int, size: tuple[int, int]) -> None:
    width, height = size
    if frame in ("framed", "grid", "shaded"):
        fill = "#c8d8c8" if frame == "shaded" else None
        pen.rectangle((3, 3, width - 4, height - 4), outline="black", width=2, fill=fill)
    for number in range(count + 1):
        y = _TOP + _LEADING * number - 6
        if frame in ("ruled", "grid"):
            pen.line((3, y, width - 4, y), fill="#808080", width=1)
        if frame == "striped" and number % 2:
            pen.rectangle((10, y, width - 10, y + _LEADING), fill="#b0b0b0")
    if frame == "grid":
        pen.line((width // 2, 3, width // 2, height - 4), fill="black", width=2)


def _noise(size: tuple[int, int]) -> Image.Image:
    grey = np.random.default_rng(0).normal(160, 60, (size[1], size[0])).clip(0, 255)
    return Image.fromarray(grey.astype(np.uint8)).convert("RGB")


def _recompressed(page: Image.Image) -> Image.Image:
    file = io.BytesIO()
    page.save(file, "JPEG", quality=60)
    return Image.open(file).convert("RGB")


def measure(pages: int = 5, lines: int = 26) -> dict[str, Counts]:
    """The counts of every kind of page, over every kind of text."""
    counts = {frame: Counts() for frame in FRAMES}
    for frame, (name, make), number in product(FRAMES, TEXTS.items(), range(pages)):
        rng = random.Random(f"{name}{number}")
        page, printed = draw_page(frame, [make(rng, i) for i in range(lines)])
        counts[frame] += read_page(page, printed, anyres_of(DEMO))
    return counts


def main() -> None:
    """Print a table, and all of it as one JSON object."""
    counts = measure()
    heads = ("pages", "lines", "strips", "overlapping", "lost", "doubled", "out of order")
    sys.stdout.write(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}\n")
    for name, one in counts.items():
        row = (f"{one.pages} {name}", one.lines, one.strips, one.overlaps, one.lost, one.doubled, one.out_of_order)
        sys.stdout.write(f"| {' | '.join(map(str, row))} |\n")
    total = sum(counts.values(), Counts())
    sys.stdout.write(json.dumps({name: getattr(total, name) for name in Counts.__slots__}) + "\n")


if __name__ == "__main__":
    main()
