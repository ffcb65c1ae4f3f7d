"""What the renderer draws with: a canvas that remembers where each letter stands, backgrounds, colours."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]
Point = tuple[float, float]
TRAINING_BACKGROUNDS = ("plain", "plain", "plain", "gradient", "stripes", "specks", "lines")
HELD_OUT_BACKGROUNDS = ("plain", "plain", "gradient", "rings", "checks")


@dataclass(frozen=True, slots=True, kw_only=True)
class Letter:
    """A printed character and its middle, in pixels; blanks are not recorded."""

    text: str
    x: float
    y: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Box:
    """A region of a canvas in pixels."""

    left: float
    top: float
    width: float
    height: float


@dataclass(slots=True, kw_only=True)
class Canvas:
    """A picture in the making."""

    image: Image.Image
    letters: list[Letter] = field(default_factory=list)

    @property
    def pen(self) -> ImageDraw.ImageDraw:
        """Draws on the image as it is now."""
        return ImageDraw.Draw(self.image)

    def print_line(self, text: str, at: Point, font: ImageFont.FreeTypeFont, colour: Colour) -> None:
        """Print a line whose baseline starts at a point, and note its letters."""
        x, baseline = at
        self.pen.text((x, baseline), text, font=font, fill=colour, anchor="ls")
        middle = baseline - 0.33 * font.size
        for character in text:
            advance = font.getlength(character)
            if character != " ":
                self.letters.append(Letter(text=character, x=x + advance / 2, y=middle))
            x += advance


def brightness(colour: Colour) -> float:
    """Perceived brightness, 0 to 255."""
    return 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]


def distance(one: Colour, other: Colour) -> float:
    """How differently two colours look, about 0 to 255: the larger of their channels' mean and brightness distances."""
    channels = sum(abs(a - b) for a, b in zip(one, other, strict=True)) / 2
    return max(min(channels, 255.0), abs(brightness(one) - brightness(other)))


def random_colour(rng: random.Random) -> Colour:
    """A paper-like light, a dark, or any colour."""
    kind = rng.random()
    low, high = (205, 255) if kind < 0.5 else (0, 75) if kind < 0.7 else (0, 255)
    return (rng.randint(low, high), rng.randint(low, high), rng.randint(low, high))


def contrasting(rng: random.Random, colour: Colour, least: float) -> Colour:
    """A colour whose brightness differs from another's by at least `least` (up to 127 can always be had)."""
    for _ in range(30):
        other = random_colour(rng)
        if abs(brightness(other) - brightness(colour)) >= least:
            return other
    return (0, 0, 0) if brightness(colour) > 127 else (255, 255, 255)


def shifted(rng: random.Random, colour: Colour, most: int) -> Colour:
    """A colour near another."""
    red, green, blue = (min(255, max(0, channel + rng.randint(-most, most))) for channel in colour)
    return (red, green, blue)


def new_canvas(rng: random.Random, width: int, height: int, colour: Colour, kinds: Sequence[str]) -> Canvas:
    """A canvas with a quiet background around a colour."""
    canvas = Canvas(image=Image.new("RGB", (width, height), colour))
    other = shifted(rng, colour, 26)
    match rng.choice(kinds):
        case "gradient":
            ramp = Image.linear_gradient("L").rotate(rng.choice((0, 90, 180, 270))).resize((width, height))
            canvas.image.paste(other, (0, 0), ramp)
        case "stripes":
            _stripes(rng, canvas, other)
        case "specks":
            _specks(rng, canvas, shifted(rng, colour, 40))
        case "lines":
            _lines(rng, canvas, other)
        case "rings":
            _rings(rng, canvas, other)
        case "checks":
            _checks(rng, canvas, other)
    return canvas


def _stripes(rng: random.Random, canvas: Canvas, colour: Colour) -> None:
    width, height = canvas.image.size
    step = rng.randint(8, 60)
    pen = canvas.pen
    slant = rng.randint(-height // 2, height // 2)
    for x in range(-height // 2, width + height // 2, 2 * step):
        pen.polygon([(x, 0), (x + step, 0), (x + step + slant, height), (x + slant, height)], fill=colour)


def _specks(rng: random.Random, canvas: Canvas, colour: Colour) -> None:
    width, height = canvas.image.size
    points = [(rng.randrange(width), rng.randrange(height)) for _ in range(rng.randint(5, 120))]
    canvas.pen.point(points, fill=colour)


def _lines(rng: random.Random, canvas: Canvas, colour: Colour) -> None:
    width, height = canvas.image.size
    pen = canvas.pen
    for _ in range(rng.randint(1, 6)):
        ends = [(rng.randint(0, width), rng.randint(0, height)) for _ in range(2)]
        pen.line(ends, fill=colour, width=rng.randint(1, 4))


def _rings(rng: random.Random, canvas: Canvas, colour: Colour) -> None:
    width, height = canvas.image.size
    x, y, step = rng.randint(0, width), rng.randint(0, height), rng.randint(12, 50)
    pen = canvas.pen
    for radius in range(step, max(width, height), 2 * step):
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), outline=colour, width=step // 2)


def _checks(rng: random.Random, canvas: Canvas, colour: Colour) -> None:
    width, height = canvas.image.size
    step = rng.randint(15, 60)
    pen = canvas.pen
    for row, y in enumerate(range(0, height, step)):
        for x in range(step * (row % 2), width, 2 * step):
            pen.rectangle((x, y, x + step - 1, y + step - 1), fill=colour)
