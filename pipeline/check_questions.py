"""Questions of check-model: pictures that are drawn here, the same on every machine, and what is asked about them."""

import io
import json
from dataclasses import replace

import numpy as np
from PIL import Image, ImageDraw

from pipeline.stages.preprocess import Preprocess
from schemas.request import ImageRef, Request, requests_to_table
from schemas.sample import Sample, table_to_samples

_DESCRIBE = "Describe the image in more details."
_TALK = [
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is in the picture?"}]},
    {"role": "assistant", "content": "Some shapes."},
    {"role": "user", "content": "Which colours do they have?"},
]
_FOUR = ("How many shapes are there?", "Which is the largest?", "What is in the middle?", "Is there any text?")


def draw(width: int, height: int, seed: int) -> bytes:
    """Return a PNG of shapes over a gradient with some noise: something for every tile to see."""
    rng = np.random.default_rng(seed)
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    slopes = rng.uniform(40, 200, (3, 2))
    pixels = x[..., None] * slopes[:, 0] + y[..., None] * (255 - slopes[:, 1]) + rng.integers(0, 12, (height, width, 1))
    image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    pen = ImageDraw.Draw(image)
    for number in range(6):
        left, top = int(rng.integers(0, width)), int(rng.integers(0, height))
        box = (left, top, left + width // 5 + 1, top + height // 5 + 1)
        colour = tuple(int(level) for level in rng.integers(0, 256, 3))
        (pen.ellipse if number % 2 else pen.rectangle)(box, fill=colour, outline=(0, 0, 0))
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def questions() -> list[Request]:
    """Return one row for each kind of row: one picture of each shape, several, none, a conversation."""

    def ask(id: str, *sizes: tuple[int, int], prompt: str = _DESCRIBE) -> Request:
        images = tuple(ImageRef(data=draw(*size, seed=seed)) for seed, size in enumerate(sizes))
        return Request(id=id, images=images, prompt=prompt)

    return [
        ask("one picture", (640, 480)),
        ask("a wide picture", (1000, 280), prompt="What is on the left?"),
        ask("a tall picture", (260, 900)),
        ask("a small picture", (60, 44), prompt="What is this?"),
        ask("two pictures", (500, 400), (420, 300), prompt="What differs between the two pictures?"),
        ask("no picture", prompt="Write a short sentence about the sea."),
        replace(ask("a conversation", (480, 360)), prompt=None, messages=json.dumps(_TALK)),
    ]


def check_samples(preprocess: Preprocess) -> list[Sample]:
    """Return the questions as the engine is asked them; four of them are prompts about one picture."""
    four = [Request(id="four prompts", images=(ImageRef(data=draw(560, 560, seed=9)),), prompt=text) for text in _FOUR]
    samples = table_to_samples(preprocess(requests_to_table([*questions(), *four])))
    *alone, first, second, third, fourth = samples
    prompts = [sample.prompts[0] for sample in (first, second, third, fourth)]
    together = replace(first, prompts=tuple(replace(one, id=f"{n}") for n, one in enumerate(prompts, start=1)))
    return [*alone, together]
