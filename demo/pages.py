"""Pages of printed text: signs, labels, notes, receipts; one to four lines, never smaller than can be read."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from demo.draw import Box, Canvas, Colour, contrasting, shifted
from demo.fonts import Face, Family, choose_face, load_font
from demo.words import MAX_LINE, Lexicon, is_ambiguous, make_line

TRAINING_LAYOUTS = ("plain", "plain", "sign", "label", "note", "receipt", "form")
HELD_OUT_LAYOUTS = ("ticket", "plate", "card")
MAX_LINES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """How hard a page may be."""

    most_lines: int
    longest: int  # characters a line
    least_em: float  # pixels of the picture


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """Lines set in one face. `sizes` are each line's em in pixels, `pitch` the baselines' distance in ems."""

    lines: tuple[str, ...]
    face: Face
    sizes: tuple[float, ...]
    pitch: float

    def width(self, line: int) -> float:
        """Pixels that a line takes."""
        return _width(self.face, self.lines[line]) * self.sizes[line]


def set_text(rng: random.Random, families: Sequence[Family], lexicon: Lexicon, region: Box, demand: Demand) -> Text:
    """Lines and a size for them that fit a region."""
    face = choose_face(rng, families)
    pitch = rng.uniform(1.1, 1.5)
    room = max(1, int(region.height / (demand.least_em * pitch)))
    count = min(rng.randint(1, demand.most_lines), room)
    lines = [make_line(rng, lexicon, min(demand.longest, MAX_LINE)) for _ in range(count)]
    weights = [1.0] * count
    if count > 1 and rng.random() < 0.3:
        weights[0] = rng.uniform(1.2, 1.9)
    lines = [
        _shortened(rng, face, line, region.width / (demand.least_em * w))
        for line, w in zip(lines, weights, strict=True)
    ]
    while len(lines) > 1 and demand.least_em * pitch * sum(weights[: len(lines)]) > region.height:
        lines.pop()
    weights = weights[: len(lines)]
    widest = max(_width(face, line) * weight for line, weight in zip(lines, weights, strict=True))
    most = max(demand.least_em, min(region.width / widest, region.height / (pitch * sum(weights))))
    em = demand.least_em * (most / demand.least_em) ** rng.random()
    return Text(lines=tuple(lines), face=face, sizes=tuple(em * weight for weight in weights), pitch=pitch)


def fitted(lines: Sequence[str], face: Face, region: Box, share: float) -> Text:
    """Given lines, as large as a share of the region allows."""
    pitch = 1.3
    widest = max(_width(face, line) for line in lines)
    em = share * min(region.width / widest, region.height / (pitch * len(lines)))
    return Text(lines=tuple(lines), face=face, sizes=(em,) * len(lines), pitch=pitch)


def print_text(rng: random.Random, canvas: Canvas, text: Text, region: Box, colour: Colour) -> None:
    """Print somewhere in the region, aligned left, right or centred."""
    height = text.pitch * sum(text.sizes)
    block = max(text.width(i) for i in range(len(text.lines)))
    align = rng.choice((0.0, 0.5, 0.5, 1.0))
    left = region.left + rng.random() * max(0.0, region.width - block)
    top = region.top + rng.random() * max(0.0, region.height - height)
    for i, line in enumerate(text.lines):
        font = load_font(text.face.path, max(1, int(text.sizes[i])))
        x = left + align * (block - text.width(i))
        canvas.print_line(line, (x, top + 0.5 * text.sizes[i] * (text.pitch - 1) + 0.8 * text.sizes[i]), font, colour)
        top += text.pitch * text.sizes[i]


def print_columns(rng: random.Random, canvas: Canvas, text: Text, region: Box, colour: Colour) -> None:
    """Print the lines' last words against the right edge where that leaves a gap, as a receipt does."""
    top = region.top + rng.random() * max(0.0, region.height - text.pitch * sum(text.sizes))
    for i, line in enumerate(text.lines):
        font = load_font(text.face.path, max(1, int(text.sizes[i])))
        baseline = top + 0.5 * text.sizes[i] * (text.pitch - 1) + 0.8 * text.sizes[i]
        name, _, amount = line.rpartition(" ")
        gap = region.width - text.width(i)
        if not name or gap < text.sizes[i]:
            canvas.print_line(line, (region.left + gap * rng.choice((0, 0.5)), baseline), font, colour)
        else:
            canvas.print_line(name, (region.left, baseline), font, colour)
            right = region.left + region.width
            canvas.print_line(amount, (right - font.getlength(amount), baseline), font, colour)
        top += text.pitch * text.sizes[i]


def decorate(rng: random.Random, canvas: Canvas, layout: str, colour: Colour) -> tuple[Box, Colour]:
    """Draw what surrounds the text on a background `colour`; the region left for it and the colour it stands on."""
    width, height = canvas.image.size
    edge = rng.uniform(0.02, 0.07) * min(width, height)
    inner = Box(left=edge, top=edge, width=width - 2 * edge, height=height - 2 * edge)
    match layout:
        case "sign" | "plate":
            return _plate(rng, canvas, inner, bolts=layout == "plate")
        case "label":
            paper = contrasting(rng, colour, 30)
            canvas.pen.rectangle(
                _corners(inner), fill=paper, outline=shifted(rng, colour, 60), width=_stroke(rng, edge)
            )
            return _inset(inner, edge), paper
        case "note":
            step = rng.uniform(0.08, 0.25) * height
            for line in range(1, int(height / step) + 1):
                canvas.pen.line(((0, line * step), (width, line * step)), fill=shifted(rng, colour, 30))
        case "form":
            field, rest = _split(rng, inner)
            canvas.pen.rectangle(_corners(field), outline=contrasting(rng, colour, 60), width=_stroke(rng, edge))
            return rest, colour
        case "ticket":
            canvas.pen.rectangle(_corners(inner), outline=contrasting(rng, colour, 90), width=_stroke(rng, edge))
            return _inset(inner, edge), colour
        case "card":
            band = 0.12 * height
            canvas.pen.rectangle((0, 0, width, band), fill=contrasting(rng, colour, 60))
            return Box(left=edge, top=band + edge, width=inner.width, height=height - band - 2 * edge), colour
    return inner, colour


def _plate(rng: random.Random, canvas: Canvas, inner: Box, *, bolts: bool) -> tuple[Box, Colour]:
    paper = (rng.randint(0, 255), rng.randint(0, 255), rng.randint(0, 255))
    edge = min(inner.width, inner.height) * 0.05
    stroke = _stroke(rng, edge)
    canvas.pen.rounded_rectangle(
        _corners(inner), radius=3 * edge, fill=paper, outline=contrasting(rng, paper, 100), width=stroke
    )
    text = _inset(inner, edge + stroke)
    if bolts:
        radius = 0.6 * edge
        for x in (inner.left + 2 * edge, inner.left + inner.width - 2 * edge):
            y = inner.top + 2 * edge
            canvas.pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=(128, 128, 128))
        text = Box(left=text.left, top=text.top + 2 * edge, width=text.width, height=text.height - 2 * edge)
    return text, paper


def _split(rng: random.Random, box: Box) -> tuple[Box, Box]:
    """An empty field at the left or the top, whichever side is longer, and the rest of the box."""
    share, gap = rng.uniform(0.1, 0.3), 0.05
    if box.width > box.height:
        left = (share + gap) * box.width
        rest = Box(left=box.left + left, top=box.top, width=box.width - left, height=box.height)
        return Box(left=box.left, top=box.top, width=share * box.width, height=box.height), rest
    top = (share + gap) * box.height
    rest = Box(left=box.left, top=box.top + top, width=box.width, height=box.height - top)
    return Box(left=box.left, top=box.top, width=box.width, height=share * box.height), rest


def _stroke(rng: random.Random, edge: float) -> int:
    return max(1, round(edge * rng.uniform(0.1, 0.5)))


def _corners(box: Box) -> tuple[float, float, float, float]:
    return (box.left, box.top, box.left + box.width, box.top + box.height)


def _inset(box: Box, by: float) -> Box:
    return Box(left=box.left + by, top=box.top + by, width=box.width - 2 * by, height=box.height - 2 * by)


def _width(face: Face, text: str) -> float:
    """The width of a text in ems."""
    return load_font(face.path, 64).getlength(text) / 64


def _shortened(rng: random.Random, face: Face, line: str, most: float) -> str:
    """The line without its last words, or letters, until it is at most `most` ems wide."""
    while _width(face, line) > most and len(line) > 1:
        words = line.split(" ")
        line = " ".join(words[:-1]) if len(words) > 1 else line[: max(1, math.floor(len(line) * 0.8))]
    return str(rng.randint(2, 9)) if is_ambiguous(line) else line
