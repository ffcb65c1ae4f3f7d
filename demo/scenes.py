"""Scenes of coloured shapes, each in its own ninth of the picture, and the one caption that is right."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

from PIL import Image, ImageDraw

from demo.draw import Box, Canvas, Colour, Point, distance, random_colour, shifted

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
COLOURS: dict[str, Colour] = {
    "red": (215, 35, 35),
    "green": (35, 155, 55),
    "blue": (35, 75, 215),
    "yellow": (245, 220, 40),
    "orange": (245, 135, 20),
    "purple": (135, 45, 175),
    "black": (22, 22, 22),
    "white": (244, 244, 244),
}
PLACES = (
    *("top left", "top", "top right"),
    *("left", "centre", "right"),
    *("bottom left", "bottom", "bottom right"),
)
NUMBERS = ("No", "One", "Two", "Three", "Four")
_LEAST_DISTANCE = 75  # between a shape and what it stands on
_SMOOTHING = 3  # shapes are drawn this much larger and reduced, for soft edges


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """One shape of a scene; `place` counts the ninths in reading order."""

    shape: str
    colour: str
    place: int

    def __str__(self) -> str:
        return f"{self.colour} {self.shape}"


def caption(marks: Sequence[Mark]) -> str:
    """The scene in words: count, then every shape in reading order."""
    named = [f"{with_article(mark)} at the {PLACES[mark.place]}" for mark in marks]
    return f"{NUMBERS[len(marks)]} {'shape' if len(marks) == 1 else 'shapes'}: {', '.join(named)}."


def with_article(mark: Mark) -> str:
    """A red ring, an orange star."""
    return f"{'an' if mark.colour[0] in 'aeiou' else 'a'} {mark}"


def choose_marks(rng: random.Random, most: int, places: Sequence[int]) -> list[Mark]:
    """One to `most` shapes, no two the same, in reading order."""
    chosen = sorted(rng.sample(places, rng.randint(1, most)))
    kinds = rng.sample(list(product(SHAPES, COLOURS)), len(chosen))
    if rng.random() < 0.3:  # all of one colour or all of one shape
        kinds = [(shape, kinds[0][1]) for shape in rng.sample(SHAPES, len(chosen))]
    elif rng.random() < 0.3:
        kinds = [(kinds[0][0], colour) for colour in rng.sample(list(COLOURS), len(chosen))]
    return [Mark(shape=s, colour=c, place=place) for (s, c), place in zip(kinds, chosen, strict=True)]


def backdrop(rng: random.Random, marks: Sequence[Mark]) -> Colour:
    """A background on which every shape can be seen."""
    for _ in range(60):
        colour = random_colour(rng)
        if all(distance(colour, COLOURS[mark.colour]) > _LEAST_DISTANCE for mark in marks):
            return colour
    return (128, 128, 128)


def draw_marks(rng: random.Random, canvas: Canvas, marks: Sequence[Mark], least: float) -> None:
    """Draw the shapes, each `least` pixels across or more, wholly inside its ninth."""
    width, height = canvas.image.size
    for mark in marks:
        cell = Box(
            left=(mark.place % 3) * width / 3, top=(mark.place // 3) * height / 3, width=width / 3, height=height / 3
        )
        room = min(cell.width, cell.height)
        size = max(min(least, 0.95 * room), room * rng.uniform(0.35, 0.95))
        left = cell.left + rng.uniform(0.1, 0.9) * (cell.width - size)
        top = cell.top + rng.uniform(0.1, 0.9) * (cell.height - size)
        stencil = _stencil(mark.shape, round(size), rng.uniform(-8, 8))
        canvas.image.paste(shifted(rng, COLOURS[mark.colour], 14), (round(left), round(top)), stencil)


def _stencil(shape: str, size: int, degrees: float) -> Image.Image:
    """The shape in white on black, `size` pixels across, turned a little."""
    full = size * _SMOOTHING
    image = Image.new("L", (full, full), 0)
    pen = ImageDraw.Draw(image)
    match shape:
        case "circle":
            pen.ellipse((0, 0, full - 1, full - 1), fill=255)
        case "ring":
            pen.ellipse((0, 0, full - 1, full - 1), outline=255, width=full // 5)
        case _:
            corners = _turned(_CORNERS[shape], math.radians(degrees))
            pen.polygon([(x * (full - 1), y * (full - 1)) for x, y in corners], fill=255)
    return image.reduce(_SMOOTHING)


def _turned(corners: Sequence[Point], radians: float) -> list[Point]:
    """Corners in the unit square, turned about its middle and shrunk so that they stay inside."""
    sine, cosine = math.sin(radians), math.cos(radians)
    reach = 0.5 / (0.5 * (abs(sine) + abs(cosine)))
    moved = [((x - 0.5) * reach, (y - 0.5) * reach) for x, y in corners]
    return [(0.5 + x * cosine - y * sine, 0.5 + x * sine + y * cosine) for x, y in moved]


def _star() -> list[Point]:
    angles = [math.pi * (-0.5 + corner / 5) for corner in range(10)]
    return [
        (0.5 + radius * math.cos(angle), 0.5 + radius * math.sin(angle))
        for angle, radius in zip(angles, (0.5, 0.21) * 5, strict=True)
    ]


_ARM = (0.34, 0.66)
_CORNERS: dict[str, list[Point]] = {
    "square": [(0.06, 0.06), (0.94, 0.06), (0.94, 0.94), (0.06, 0.94)],
    "triangle": [(0.5, 0.02), (0.98, 0.92), (0.02, 0.92)],
    "star": _star(),
    "cross": [
        *((_ARM[0], 0), (_ARM[1], 0), (_ARM[1], _ARM[0]), (1, _ARM[0]), (1, _ARM[1]), (_ARM[1], _ARM[1])),
        *((_ARM[1], 1), (_ARM[0], 1), (_ARM[0], _ARM[1]), (0, _ARM[1]), (0, _ARM[0]), (_ARM[0], _ARM[0])),
    ],
}
