"""Sample: a request made ready for the engine: token ids, uint8 tiles, sizes, or the reason why there are none."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from schemas.errors import Failure
from schemas.form import FORM, Form
from schemas.request import FAILURE

TokenIds = npt.NDArray[np.int32]
Tiles = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True, order=True)
class Size:
    """Width and height in pixels (or in tiles or patches, where the name says so)."""

    width: int
    height: int


def no_tiles() -> Tiles:
    """Return the tiles of a sample without an image: shape (0, 0, 0, 3)."""
    return np.zeros((0, 0, 0, 3), np.uint8)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """One question about a sample's images.

    `token_ids` (num_prompt_tokens,) holds every `<image>` already expanded to its count; it is empty exactly when
    `failure` says why this prompt cannot be answered. The first `num_common` follow from the job alone, whatever the
    row is. The last `num_prefix` are `answer_prefix`, which the answer begins with. `form` is the row's own, instead of
    its job's.
    """

    id: str
    text: str
    token_ids: TokenIds = field(default_factory=lambda: np.zeros(0, np.int32))
    num_image_tokens: int = 0
    num_common: int = 0
    max_new_tokens: int = 0  # at most what the prompt leaves of the context
    answer_prefix: str = ""
    num_prefix: int = 0
    form: Form | None = None
    failure: Failure | None = None

    def __post_init__(self) -> None:
        if (self.failure is None) != (len(self.token_ids) > 0):
            raise ValueError(f"token_ids must be empty exactly when failure is set, prompt {self.id!r} breaks that")
        if not 0 <= self.num_common <= len(self.token_ids):
            raise ValueError(f"num_common must be from 0 to {len(self.token_ids)} token_ids, got {self.num_common}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Strip:
    """Rows of a page that are read as a picture of their own, `bottom` not among them, and how many tiles it has.

    Of a column of print it has the columns of pixels from `left` to `right`, which is 0 for the page's own width.
    """

    top: int
    bottom: int
    num_tiles: int
    left: int = 0
    right: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One row's images and prompts. Every prompt becomes one answer; one prefill of the images serves them all.

    `tiles` is (num_tiles, tile, tile, 3) uint8, images in order, each base tile first, then row-major.
    `image_sizes` are the original sizes in pixels, after EXIF orientation; `tiles_per_image` sums to num_tiles.
    A page cut into `strips` has the tiles of these instead of its own, and every prompt once for each strip.
    """

    id: str
    prompts: tuple[Prompt, ...]
    image_sizes: tuple[Size, ...] = ()
    tiles_per_image: tuple[int, ...] = ()
    tiles: Tiles = field(default_factory=no_tiles)
    image_sha256: str | None = None  # of the first image's encoded bytes, hex
    strips: tuple[Strip, ...] = ()

    def __post_init__(self) -> None:
        if not self.prompts:
            raise ValueError(f"a sample must have at least one prompt, {self.id!r} has none")
        if len(self.tiles) != sum(self.tiles_per_image) or len(self.image_sizes) != len(self.tiles_per_image):
            raise ValueError(f"tiles and tiles_per_image must agree, got {len(self.tiles)} and {self.tiles_per_image}")
        if self.strips and len(self.prompts) % len(self.strips):
            raise ValueError(f"prompts must be there for every strip, got {len(self.prompts)} for {len(self.strips)}")

    @property
    def asked(self) -> tuple[Prompt, ...]:
        """Return a prompt for each answer of the row: those of the first strip, where there are strips."""
        return self.prompts[: len(self.prompts) // len(self.strips)] if self.strips else self.prompts


_PROMPT = pa.struct(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("token_ids", pa.large_list(pa.int32()), nullable=False),
        pa.field("num_image_tokens", pa.int32(), nullable=False),
        pa.field("num_common", pa.int32(), nullable=False),
        pa.field("max_new_tokens", pa.int32(), nullable=False),
        pa.field("answer_prefix", pa.string(), nullable=False),
        pa.field("num_prefix", pa.int32(), nullable=False),
        pa.field("form", FORM),  # null where the job's form applies, if it has one
        pa.field("failure", FAILURE),  # null exactly when token_ids is not empty
    ]
)
_SIZE = pa.struct([pa.field("width", pa.int32(), nullable=False), pa.field("height", pa.int32(), nullable=False)])
_STRIP = pa.struct(
    [pa.field(name, pa.int32(), nullable=False) for name in ("top", "bottom", "num_tiles", "left", "right")]
)

SAMPLE_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("prompts", pa.list_(_PROMPT), nullable=False),
        pa.field("image_sizes", pa.list_(_SIZE), nullable=False),
        pa.field("tiles_per_image", pa.list_(pa.int32()), nullable=False),
        pa.field("tiles", pa.large_binary(), nullable=False),  # 64-bit offsets: 5 tiles of 336 are 1.69 MB a row
        pa.field("tile_size", pa.int32(), nullable=False),  # pixels; 0 where there are no tiles
        pa.field("image_sha256", pa.string()),
        pa.field("strips", pa.list_(_STRIP), nullable=False),  # empty where the image is seen whole
    ]
)


def samples_to_table(samples: Sequence[Sample]) -> pa.Table:
    """Return a table of SAMPLE_SCHEMA, one row a sample."""
    columns = {
        "id": [s.id for s in samples],
        "prompts": [[_prompt_to_row(p) for p in s.prompts] for s in samples],
        "image_sizes": [[{"width": z.width, "height": z.height} for z in s.image_sizes] for s in samples],
        "tiles_per_image": [list(s.tiles_per_image) for s in samples],
        "tiles": _tiles_column([s.tiles for s in samples]),
        "tile_size": [s.tiles.shape[1] for s in samples],
        "image_sha256": [s.image_sha256 for s in samples],
        "strips": [[asdict(strip) for strip in s.strips] for s in samples],
    }
    return pa.table(columns, schema=SAMPLE_SCHEMA)


def table_to_samples(table: pa.Table) -> list[Sample]:
    """Return the samples of a table that starts with SAMPLE_SCHEMA's columns. Tiles are views of the table's memory."""
    small = table.select([name for name in SAMPLE_SCHEMA.names if name not in ("prompts", "tiles")]).to_pylist()
    rows = zip(small, _prompts_of(table["prompts"].combine_chunks()), binary_views(table["tiles"]), strict=True)
    return [_row_to_sample(row, prompts, pixels) for row, prompts, pixels in rows]


def binary_views(column: pa.ChunkedArray) -> Iterator[pa.Buffer]:
    """Yield the values of a large_binary column as views of its memory; a scalar's `as_buffer` would copy."""
    for chunk in column.chunks:
        _, offsets, content = chunk.buffers()
        bounds = np.frombuffer(offsets, np.int64)[chunk.offset : chunk.offset + len(chunk) + 1].tolist()
        for start, stop in pairwise(bounds):
            yield content.slice(start, stop - start)


def _tiles_column(tiles: list[Tiles]) -> pa.LargeBinaryArray:
    """Return the pixels in one buffer, copied at most once; a list of bytes objects would cost a second copy."""
    pixels = _lying_together([one for one in tiles if one.size])
    if pixels is None:
        pixels = np.concatenate([np.zeros(0, np.uint8), *(one.reshape(-1) for one in tiles)])
    offsets = np.cumsum([0, *(one.size for one in tiles)], dtype=np.int64)
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(pixels)]
    return pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(tiles), buffers)


def _prompt_to_row(prompt: Prompt) -> dict[str, object]:
    failure = prompt.failure
    return {
        "id": prompt.id,
        "text": prompt.text,
        "token_ids": prompt.token_ids,
        "num_image_tokens": prompt.num_image_tokens,
        "num_common": prompt.num_common,
        "max_new_tokens": prompt.max_new_tokens,
        "answer_prefix": prompt.answer_prefix,
        "num_prefix": prompt.num_prefix,
        "form": prompt.form and asdict(prompt.form),
        "failure": failure and {"stage": failure.stage, "type": failure.type, "message": failure.message},
    }


def _lying_together(tiles: list[Tiles]) -> npt.NDArray[np.uint8] | None:
    """Return tiles that are one after the other in one memory as a view of that; None where they are not."""
    memory = tiles[0].base if tiles else None
    if not isinstance(memory, np.ndarray) or memory.ndim != 1 or memory.dtype != np.uint8 or memory.strides != (1,):
        return None
    begins = [_address(one) for one in tiles]
    ends = [begin + one.size for begin, one in zip(begins, tiles, strict=True)]
    if begins[1:] != ends[:-1] or not all(one.base is memory and one.flags.c_contiguous for one in tiles):
        return None
    start = begins[0] - _address(memory)
    return memory[start : start + ends[-1] - begins[0]]


def _address(array: npt.NDArray[np.uint8]) -> int:
    return int(array.__array_interface__["data"][0])


def _prompts_of(lists: pa.ListArray) -> Iterator[tuple[Prompt, ...]]:
    """Yield the prompts of each row. Token ids do not become numbers of Python's on their way: there are thousands."""
    structs = lists.flatten()
    names = [field.name for field in structs.type if field.name != "token_ids"]
    columns = dict(zip((field.name for field in structs.type), structs.flatten(), strict=True))
    rest = pa.RecordBatch.from_pydict({name: columns[name] for name in names}).to_pylist()
    token_ids = columns["token_ids"]
    numbers = token_ids.flatten().to_numpy()
    stops = np.cumsum(token_ids.value_lengths().to_numpy(), dtype=np.int64)
    prompts = [
        _row_to_prompt(row, numbers[stop - length : stop])
        for row, stop, length in zip(rest, stops.tolist(), token_ids.value_lengths().to_pylist(), strict=True)
    ]
    done = 0
    for length in lists.value_lengths().to_pylist():
        yield tuple(prompts[done : done + length])
        done += length


def _row_to_sample(row: dict[str, Any], prompts: tuple[Prompt, ...], tiles: pa.Buffer) -> Sample:
    tile = row.pop("tile_size")
    row["image_sizes"] = tuple(Size(**size) for size in row["image_sizes"])
    row["tiles_per_image"] = tuple(row["tiles_per_image"])
    row["strips"] = tuple(Strip(**strip) for strip in row["strips"])
    pixels = np.frombuffer(tiles, np.uint8)
    shape = (-1, tile, tile, 3) if len(pixels) else no_tiles().shape
    return Sample(**row, prompts=prompts, tiles=pixels.reshape(shape))


def _row_to_prompt(row: dict[str, Any], token_ids: TokenIds) -> Prompt:
    row["token_ids"] = np.array(token_ids, np.int32)  # a copy: a view could not be written to, of which torch warns
    row["form"] = Form(**row["form"]) if row["form"] else None
    row["failure"] = Failure(**row["failure"]) if row["failure"] else None
    return Prompt(**row)
