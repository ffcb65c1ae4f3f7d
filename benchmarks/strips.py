"""What is lost and what is doubled where a page is read in strips: pages of many kinds, and a reader without faults.

    python -m benchmarks.strips

The reader reads every line that is whole in a strip, and half of one that a border runs through, with letters wrong.
Every line of print that is read in no strip, or that joining drops, is lost; one that is there twice is doubled. The
last line of stdout is one JSON object.
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

from demo.checkpoint import DEMO, anyres_of
from pipeline.joining import join_texts
from pipeline.preprocess.geometry import Anyres
from pipeline.preprocess.strips import cut_page
from schemas.sample import Size, Strip

_LEADING, _LEFT, _TOP = 44, 24, 20  # of the demo model's pages
_FONT = 28
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

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(**{name: getattr(self, name) + getattr(other, name) for name in Counts.__slots__})


TEXTS: dict[str, Callable[[random.Random, int], str]] = {
    "dated": lambda rng, i: f"2024-01-{1 + i // 24:02d} {i % 24:02d}:00 {rng.choice(('OK', 'no', 'up'))}",
    "numbered": lambda rng, i: f"Item {i:02d} 0.00 0.00",
    "equal": lambda rng, i: "0.00 0.00 0.00",
    "unique": lambda rng, i: " ".join("".join(rng.choices("abdegilmnoprstuy", k=rng.randint(3, 7))) for _ in range(3)),
    "accented": lambda rng, i: rng.choice(("GRÖSSE ÜBER ÄMTER", "ÖFEN ÄRZTE ÜBUNG", "ÉTÉ À NÎMES")) + f" {i}",
}
FRAMES = ("plain", "framed", "ruled", "grid", "shaded", "striped", "pale", "jpeg", "textured")


def draw_page(frame: str, texts: Sequence[str], width: int = 460) -> tuple[Image.Image, list[Line]]:
    """One column of lines on a page of a kind, and where they stand."""
    size = (width, 2 * _TOP + _LEADING * len(texts))
    page = _noise(size) if frame == "textured" else Image.new("RGB", size, "white")
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(size=_FONT)
    _decorate(pen, frame, len(texts), page.size)
    lines = []
    for number, text in enumerate(texts):
        at = (_LEFT, _TOP + _LEADING * number)
        fill = "#dcdcdc" if frame == "pale" and number % 2 else "black"
        pen.text(at, text, fill=fill, font=font)
        left, top, right, bottom = map(int, pen.textbbox(at, text, font=font))
        lines.append(Line(text=text, left=left, top=top, right=right, bottom=bottom))
    return (_recompressed(page) if frame == "jpeg" else page), lines


def read_page(page: Image.Image, lines: Sequence[Line], anyres: Anyres) -> Counts:
    """Cut a page, read its strips without a fault, join what was read, and compare it with what is printed."""
    spans = cut_page(page, anyres)
    strips = [Strip(top=span.top, bottom=span.bottom, num_tiles=1) for span in spans]
    texts = ["\n".join(_read(lines, strip)) for strip in strips]
    joined = join_texts(texts, strips).split("\n") if strips else [line.text for line in lines]
    truth, found = Counter(line.text for line in lines), Counter(joined)
    overlaps = sum(below.top < above.bottom for above, below in zip(strips, strips[1:], strict=False))
    return Counts(
        pages=1,
        strips=len(strips),
        overlaps=overlaps,
        lines=len(lines),
        lost=(truth - found).total(),
        doubled=(found - truth).total(),
    )


def _read(lines: Sequence[Line], strip: Strip) -> Iterator[str]:
    for line in lines:
        shown = min(line.bottom, strip.bottom) - max(line.top, strip.top)
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
    sys.stdout.write("| pages | lines | strips | overlapping | lost | doubled |\n|---|---|---|---|---|---|\n")
    for name, one in counts.items():
        row = (f"{one.pages} {name}", one.lines, one.strips, one.overlaps, one.lost, one.doubled)
        sys.stdout.write(f"| {' | '.join(map(str, row))} |\n")
    total = sum(counts.values(), Counts())
    sys.stdout.write(json.dumps({name: getattr(total, name) for name in Counts.__slots__}) + "\n")


if __name__ == "__main__":
    main()
