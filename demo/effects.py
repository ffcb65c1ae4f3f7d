"""What happens to a picture between the printer and the file: turning, blur, noise, JPEG."""

import io
import math
import random
from functools import lru_cache

import numpy as np
from PIL import Image, ImageFilter

from demo.draw import Canvas, Colour, Letter

MOST_DEGREES = 3.0


def distort(rng: random.Random, canvas: Canvas, backdrop: Colour, strength: float) -> None:
    """Apply each effect now and then; `strength` 0 to 1 says how often. Letters keep their places."""
    if rng.random() < 0.3 * strength:
        turn(canvas, rng.uniform(-MOST_DEGREES, MOST_DEGREES), backdrop)
    if rng.random() < 0.1 * strength:
        canvas.image = canvas.image.filter(ImageFilter.GaussianBlur(rng.uniform(0.2, 0.7)))
    if rng.random() < 0.2 * strength:
        canvas.image = with_noise(rng, canvas.image, rng.uniform(2, 14))
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


def with_noise(rng: random.Random, image: Image.Image, deviation: float) -> Image.Image:
    """Add grey noise of a standard deviation in levels."""
    pixels = np.asarray(image)
    height, width, _ = pixels.shape
    bank = _noise_bank()
    top, left = rng.randrange(64), rng.randrange(64)
    tiled = np.resize(bank[top:], (height, bank.shape[1]))[:, left:]
    noise = np.resize(tiled, (height, width)) if width > tiled.shape[1] else tiled[:, :width]
    grain = (noise * np.float32(deviation)).astype(np.int16)
    return Image.fromarray(np.clip(pixels + grain[:, :, None], 0, 255).astype(np.uint8))


def through_jpeg(image: Image.Image, quality: int) -> Image.Image:
    """Encode and decode."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


@lru_cache(maxsize=1)
def _noise_bank() -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """Drawn once a process: drawing it anew for each picture would take longer than the rest of the rendering."""
    return np.random.default_rng(0).standard_normal((1700, 1700), np.float32)
