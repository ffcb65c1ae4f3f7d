"""Pictures for tests: photographs and scans that installed packages carry, and generated ones of any size."""

import io
import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

PHOTO_SUFFIXES = {".jpg", ".png", ".gif"}


def real_images() -> list[Path]:
    """Files of scikit-image and scikit-learn, in a fixed order; skips the test where they are not installed."""
    skimage = pytest.importorskip("skimage")
    sklearn = pytest.importorskip("sklearn")
    folders = [Path(skimage.__file__).parent / "data", Path(sklearn.__file__).parent / "datasets" / "images"]
    return sorted(path for folder in folders for path in folder.iterdir() if path.suffix in PHOTO_SUFFIXES)


def noise(width: int, height: int, seed: int = 0, low: int = 0, high: int = 256) -> Image.Image:
    """An RGB picture in which every pixel and channel is drawn from `low` up to, not including, `high`."""
    rng = np.random.default_rng((seed, width, height))
    return Image.fromarray(rng.integers(low, high, (height, width, 3), dtype=np.uint8))


def encoded(image: Image.Image, format: str = "PNG", **options) -> bytes:
    """The bytes of an image file."""
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def random_sizes(count: int, most: int, seed: int = 0) -> list[tuple[int, int]]:
    """Widths and heights from 1 to `most`, small ones and odd shapes as likely as large ones."""
    draw = random.Random(seed)

    def side() -> int:
        return max(1, round(most ** draw.random())) if draw.random() < 0.3 else draw.randint(1, most)

    return [(side(), side()) for _ in range(count)]
