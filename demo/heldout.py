"""The held-out pictures that scores are measured on: built once, kept in demo/heldout.parquet.

    python -m demo.heldout

Faces, words and layouts are those that training never sees (demo/render.py); the seed is fixed.
"""

import argparse
import io
import random
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from demo.checkpoint import DEMO, anyres_of
from demo.questions import Question, ask
from demo.render import (
    LEAST_EM,
    TINY_EM,
    Picture,
    Stock,
    held_out_stock,
    render_both,
    render_nothing,
    render_page,
    render_scene,
)
from demo.settings import FONTS, WORDS

HELD_OUT = Path(__file__).parent / "heldout.parquet"
SEED = "held out"
SMALL_KINDS = ("count", "colour", "yes/no", "place")
HELD_OUT_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),  # of the picture; several rows may share it
        pa.field("kind", pa.string(), nullable=False),
        pa.field("prompt", pa.string(), nullable=False),
        pa.field("truth", pa.string(), nullable=False),
        pa.field("image", pa.large_binary(), nullable=False),
    ]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One question about one encoded picture, and its true answer."""

    id: str
    kind: str
    prompt: str
    truth: str
    image: bytes


def make_items(stock: Stock, seed: str = SEED) -> Iterator[Item]:
    """300 items: 130 readings, 70 captions, 70 short questions, 20 descriptions of text, 10 pictures without any."""
    rng = random.Random(seed)
    plan: list[tuple[int, Callable[[random.Random, Stock, float], Picture], tuple[str, ...]]] = [
        (90, render_page, ("read",)),
        (20, _render_tiny, ("read tiny",)),
        (70, render_scene, ("caption", "small")),
        (20, render_both, ("read", "describe")),
        (5, render_nothing, ("no text",)),
        (5, render_scene, ("no text",)),
    ]
    number = 0
    for count, renderer, kinds in plan:
        for _ in range(count):
            picture = renderer(rng, stock, 1.0)
            data = encode(picture)
            asked = {question.kind: question for question in ask(rng, picture.content, reword=False)}
            for kind in kinds:
                question = _chosen(asked, kind, number)
                counted = question.kind if kind == "small" else kind
                yield Item(id=f"{number:03}", kind=counted, prompt=question.prompt, truth=question.truth, image=data)
            number += 1


def encode(picture: Picture) -> bytes:
    """PNG, or JPEG of high quality where that is much smaller, as it is for noise."""
    lossless, lossy = io.BytesIO(), io.BytesIO()
    picture.image.save(lossless, "PNG", optimize=True)
    picture.image.save(lossy, "JPEG", quality=92)
    return min(lossless.getvalue(), lossy.getvalue(), key=len)


def read_items(path: Path = HELD_OUT) -> list[Item]:
    """The stored items."""
    return [Item(**row) for row in pq.read_table(path, schema=HELD_OUT_SCHEMA).to_pylist()]


def write_items(items: list[Item], path: Path = HELD_OUT) -> None:
    """Store items, pictures of equal bytes once (dictionary)."""
    table = pa.Table.from_pylist([asdict(item) for item in items], schema=HELD_OUT_SCHEMA)
    pq.write_table(table, path, compression="zstd")


def _render_tiny(rng: random.Random, stock: Stock, level: float) -> Picture:
    """Lines of letters smaller than is promised."""
    picture = render_page(rng, replace(stock, least_em=TINY_EM), level)
    while picture.smallest_em >= LEAST_EM:
        picture = render_page(rng, replace(stock, least_em=TINY_EM), level)
    return picture


def _chosen(asked: dict[str, Question], kind: str, number: int) -> Question:
    """The question of a kind; `small` takes turns, and where a scene has no such question the next has its turn."""
    if kind != "small":
        return asked[{"describe": "caption", "read tiny": "read"}.get(kind, kind)]
    turns = [SMALL_KINDS[(number + i) % len(SMALL_KINDS)] for i in range(len(SMALL_KINDS))]
    return next(asked[turn] for turn in turns if turn in asked)


def main() -> None:
    """Build the file anew."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fonts", type=Path, default=FONTS)
    parser.add_argument("--words", type=Path, nargs="+", default=list(WORDS[:2]))
    parser.add_argument("--out", type=Path, default=HELD_OUT)
    flags = parser.parse_args()
    write_items(list(make_items(held_out_stock(anyres_of(DEMO), flags.fonts, flags.words))), flags.out)


if __name__ == "__main__":
    main()
