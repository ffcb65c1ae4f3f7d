"""What happens to a picture between the printer and the file: turning, blur, noise, JPEG."""

import io
import math
import random
from functools import lru_cache

import numpy as np
from PIL import Image, ImageChops, ImageFilter

from demo.draw import Canvas, Colour, Letter

MOST_DEGREES = 3.0
MOST_PIXELS = 1600  # along a side of a picture


def distort(rng: random.Random, canvas: Canvas, backdrop: Colour, strength: float) -> None:
    """Apply each effect now and then; `strength` 0 to 1 says how often. Letters keep their places."""
    if rng.random() < 0.2 * strength:
        turn(canvas, rng.uniform(-MOST_DEGREES, MOST_DEGREES), backdrop)
    if rng.random() < 0.05 * strength:
        canvas.image = canvas.image.filter(ImageFilter.GaussianBlur(rng.uniform(0.2, 0.7)))
    if rng.random() < 0.2 * strength:
        canvas.image = with_noise(rng, canvas.image, rng.randint(1, 4))
    if rng.random() < 0.3 * strength:
        canvas.image = through_jpeg(canvas.image, rng.randint(50, 95))


def turn(canvas: Canvas, degrees: float, backdrop: Colour) -> None:
    """Turn picture and letters about the middle, counter-clockwise."""
    width, height = canvas.image.size
    canvas.image = canvas.image.rotate(degrees, Image.Resampling.BILINEAR, fillcolor=backdrop)
    sine, cosine = math.sin(math.radians(degrees)), math.cos(math.radians(degrees))
    x0, y0 = width / 2, height / 2
    canvas.letters = [
        Letter(
            text=letter.text,
            x=x0 + cosine * (letter.x - x0) + sine * (letter.y - y0),
            y=y0 - sine * (letter.x - x0) + cosine * (letter.y - y0),
        )
        for letter in canvas.letters
    ]


def with_noise(rng: random.Random, image: Image.Image, strength: int) -> Image.Image:
    """Add grey noise of a standard deviation of 3 times `strength` levels."""
    bank = _noise(strength)
    left, top = rng.randrange(bank.width - image.width + 1), rng.randrange(bank.height - image.height + 1)
    noise = bank.crop((left, top, left + image.width, top + image.height))
    return ImageChops.add(image, noise.convert("RGB"), offset=-128)


def through_jpeg(image: Image.Image, quality: int) -> Image.Image:
    """Encode and decode."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


@lru_cache(maxsize=4)
def _noise(strength: int) -> Image.Image:
    """Drawn once a process: drawing it anew for each picture would take longer than all the rest."""
    levels = np.random.default_rng(strength).normal(128, 3 * strength, (MOST_PIXELS, MOST_PIXELS))
    return Image.fromarray(levels.clip(0, 255).astype(np.uint8))
