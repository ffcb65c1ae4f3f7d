"""Images per second on one core, from JPEG bytes to what the engine is given: ours against transformers' processors.

    python -m benchmarks.preprocess [--images 60] [--rounds 5]

Every round runs all contenders over the same images one after the other, so that a busy machine slows all of them; the
median of the rounds counts. Seconds are this process's CPU time. The last line of stdout is one JSON object.
"""

import argparse
import importlib.util
import io
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import LlavaNextImageProcessorPil

from pipeline.preprocess.geometry import Anyres
from pipeline.preprocess.image import ImageLimits, decode, tile_image
from schemas.sample import Size

# Width, height; drawn evenly, so the first is drawn twice as often.
SIZES = (
    *(Size(640, 480), Size(640, 480), Size(640, 427), Size(480, 640), Size(500, 375), Size(1024, 768)),
    *(Size(1200, 630), Size(800, 800), Size(427, 640), Size(336, 336), Size(1600, 400), Size(300, 900)),
)
PINPOINTS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]  # height, width
ANYRES = Anyres(tile=336, patch=14, grids=tuple(Size(width, height) for height, width in PINPOINTS))
LIMITS = ImageLimits()

# Encoded image -> bytes of what is handed on.
Preprocess = Callable[[bytes], int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One contender's median rate, and the bytes that it hands on for a row of one image."""

    name: str
    images_per_s: float
    row_bytes: int
    times_pil: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    images = photos(arguments.images)
    _say(
        f"{len(images)} JPEGs of {sum(map(len, images)) // len(images):,} bytes, {arguments.rounds} rounds, one core\n"
    )
    results = measure(contenders(), images, arguments.rounds)
    _say(f"{'':22}{'images/s':>10}{'ms/image':>10}{'bytes/row':>12}{'times pil':>11}")
    for result in results:
        ms = 1000 / result.images_per_s
        _say(f"{result.name:22}{result.images_per_s:10.1f}{ms:10.2f}{result.row_bytes:12,}{result.times_pil:11.2f}")
    _say(json.dumps({result.name: as_json(result) for result in results}))


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")


def photos(count: int, seed: int = 0) -> list[bytes]:
    """JPEGs of quality 90 in the mix of sizes, detailed at every scale as photographs are; the same for a seed."""
    rng = np.random.default_rng(seed)
    sizes = [SIZES[i] for i in rng.integers(len(SIZES), size=count)]
    return [_photo(rng, size) for size in sizes]


def contenders() -> dict[str, Preprocess]:
    """Ours and transformers' by name; the torchvision one only where that is installed."""
    found: dict[str, Preprocess] = {"ours": _ours, "transformers pil": _transformers(LlavaNextImageProcessorPil)}
    if importlib.util.find_spec("torchvision"):
        from transformers import LlavaNextImageProcessor  # without torchvision it is the other one, and says so

        found["transformers torchvision"] = _transformers(LlavaNextImageProcessor)
    return found


def measure(contenders: dict[str, Preprocess], images: list[bytes], rounds: int) -> list[Result]:
    """Time every contender over all images in every round, after one round that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    row_bytes = {name: sum(map(run, images)) // len(images) for name, run in contenders.items()}
    for _ in range(rounds):
        for name, run in contenders.items():
            start = time.process_time()
            for image in images:
                run(image)
            seconds[name].append(time.process_time() - start)
    pil = seconds["transformers pil"]
    return [
        Result(
            name=name,
            images_per_s=len(images) / statistics.median(taken),
            row_bytes=row_bytes[name],
            times_pil=statistics.median(theirs / own for theirs, own in zip(pil, taken, strict=True)),
        )
        for name, taken in seconds.items()
    ]


def as_json(result: Result) -> dict[str, float]:
    return {
        "images_per_s": round(result.images_per_s, 1),
        "row_bytes": result.row_bytes,
        "times_pil": round(result.times_pil, 2),
    }


def _photo(rng: np.random.Generator, size: Size) -> bytes:
    """Noise of halving strength at every doubling of frequency, which is how photographs are."""
    canvas = np.full((size.height, size.width, 3), 128.0, np.float32)
    for cells, strength in ((4, 60), (16, 35), (64, 20), (256, 10)):
        grid = rng.normal(0, strength, (cells, cells, 3)).astype(np.float32)
        layers = [
            Image.fromarray(grid[:, :, c]).resize((size.width, size.height), Image.Resampling.BICUBIC) for c in range(3)
        ]
        canvas += np.stack([np.asarray(layer) for layer in layers], axis=2)
    canvas += rng.normal(0, 4, canvas.shape[:2]).astype(np.float32)[..., None]  # the sensor's grain
    file = io.BytesIO()
    Image.fromarray(canvas.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
    return file.getvalue()


def _ours(data: bytes) -> int:
    return tile_image(decode(data, LIMITS), ANYRES).nbytes


def _transformers(processor_class: Callable[..., Any]) -> Preprocess:
    processor = processor_class(
        size={"shortest_edge": ANYRES.tile},
        crop_size={"height": ANYRES.tile, "width": ANYRES.tile},
        image_grid_pinpoints=PINPOINTS,
    )

    def run(data: bytes) -> int:
        image = Image.open(io.BytesIO(data))
        return int(processor(image, return_tensors="pt")["pixel_values"].nbytes)

    return run


if __name__ == "__main__":
    main()
