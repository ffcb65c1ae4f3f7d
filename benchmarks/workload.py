"""The three workloads that engines are compared on: images, questions and forced answer lengths, all from one seed."""

import functools
import io
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context

import numpy as np
import torch
from PIL import Image

from benchmarks.preprocess import SIZES
from pipeline.preprocess.image import ImageLimits
from pipeline.preprocess.preprocessor import Chat, Preprocessor
from schemas.sample import Sample, Size

# A token a byte: texts as long in tokens as "Describe the image in more details." is for the real tokenizers.
TEXTS = {
    "caption": ("Describe it.",),
    "ocr": ("Read it all.",),
    "questions": ("What is it?", "Where is it?", "How many are?", "Which colour?"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One row of a workload, as it lies in a table: the encoded image, the questions, how long each answer is."""

    id: str
    image: bytes
    texts: tuple[str, ...]
    num_new_tokens: int


def make_items(workload: str, num_images: int, scale: float = 1.0) -> list[Item]:
    """Make the rows of a workload; `scale` shrinks images and answers for a try on a small machine."""
    rng = np.random.default_rng(0)
    sizes = [SIZES[i] for i in rng.integers(0, len(SIZES), num_images)]
    lengths = np.maximum(1, _lengths(workload, num_images, rng) * scale).astype(int).tolist()
    jpegs = {size: _photo(Size(int(size.width * scale), int(size.height * scale)), rng) for size in set(SIZES)}
    return [
        Item(id=f"{i:06d}", image=jpegs[size], texts=TEXTS[workload], num_new_tokens=length)
        for i, (size, length) in enumerate(zip(sizes, lengths, strict=True))
    ]


def workers(num: int) -> ProcessPoolExecutor:
    """Start processes for `samples`."""
    return ProcessPoolExecutor(num, mp_context=get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,))


def samples(pool: ProcessPoolExecutor, items: list[Item], folder: str, image_tokens: float = 1.0) -> Iterator[Sample]:
    """Preprocess rows in the pool, in order, from their encoded bytes on."""
    return pool.map(functools.partial(prepared, folder, image_tokens=image_tokens), items, chunksize=4)


def _lengths(workload: str, num: int, rng: np.random.Generator) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    match workload:
        case "caption":
            return np.clip(rng.lognormal(np.log(90), 0.45, num), 16, 256)
        case "ocr":
            return np.clip(rng.lognormal(np.log(110), 1.0, num), 4, 1024)
        case _:
            return np.full(num, 8.0)


def _photo(size: Size, rng: np.random.Generator) -> bytes:
    """Make a JPEG with large soft shapes and fine noise, as photographs have both."""
    soft = Image.fromarray(rng.integers(0, 256, (12, 12, 3), np.uint8)).resize((size.width, size.height))
    noise = rng.normal(0, 12, (size.height, size.width, 3))
    pixels = np.clip(np.asarray(soft, np.float64) + noise, 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=90)
    return file.getvalue()


@functools.cache
def _preprocessor(folder: str, image_tokens: float) -> Preprocessor:
    # One format for all shapes: so a question has as many tokens whatever the network, and whatever its vocabulary.
    chat = Chat(template="mistral")
    return Preprocessor.load(folder, None, ImageLimits(), max_new_tokens=1, chat=chat, image_tokens=image_tokens)


def prepared(folder: str, item: Item, image_tokens: float = 1.0) -> Sample:
    """Preprocess one row as the engine takes it."""
    preprocessor = _preprocessor(folder, image_tokens)
    images = preprocessor.load_images([item.image])
    prompts = [preprocessor.build_prompt(f"p{i}", text, images) for i, text in enumerate(item.texts)]
    return Sample(
        id=item.id,
        prompts=tuple(replace(prompt, max_new_tokens=item.num_new_tokens) for prompt in prompts),
        image_sizes=images.image_sizes,
        tiles_per_image=images.tiles_per_image,
        tiles=images.tiles,
    )
