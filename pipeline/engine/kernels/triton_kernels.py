"""Our own kernels on a GPU: attention to pages, each sequence read only as far as it reaches; writes to pages; and the
gates of an 8-bit feed-forward, quantised row by row."""

# mypy: disable-error-code="import-not-found, untyped-decorator, no-any-return"
# Triton comes with torch for GPUs alone; elsewhere only a test imports this module.

from contextlib import AbstractContextManager, nullcontext
from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra import libdevice

from pipeline.engine.kernels.layout import Moves, QueryBlocks
from pipeline.engine.kernels.linear import LARGEST
from pipeline.engine.kernels.pages import PAGE
from pipeline.engine.kernels.stored import LARGEST_INT8, LEAST, Stored

_TOKENS = 16  # written at once
_FUSED = True  # products with their sums, as by default until Triton 3.10: the same numbers whatever version runs
_LEAST_ROWS = 16  # of a product on tensor cores; heads that share keys are padded to it
_MOST_ROWS = 128
_LARGE_SHARED = 160 * 2**10  # bytes of shared memory: so many rows of 32 bits take all of it


def attend_pages(
    queries: Tensor,
    keys: Stored,
    values: Stored,
    blocks: QueryBlocks,
    out: Tensor,
    *,
    shared_bytes: int | None = None,
) -> None:
    """Let every block's tokens attend to the pages of their sequence, up to their own positions.

    `keys` and `values` are the cache's; `queries` and `out` are (tokens, heads, head_dim), contiguous. One program
    walks over the keys of one block and head group, or of a part of its rows, in order, a page at a time: what other
    sequences hold, how long they are, or where the pages are, changes no bit of the result. `shared_bytes` is the
    shared memory of a processor; the device's own where it is left out.
    """
    _, heads, head_dim = queries.shape
    kv_heads, num_entries, _ = keys.numbers.shape
    scaled = keys.scales is not None
    group = heads // kv_heads
    most = most_rows(queries.dtype.itemsize, shared_bytes or _shared_bytes(queries.device))
    rows = min(most, max(_LEAST_ROWS, triton.next_power_of_2(blocks.width * group)))
    parts = triton.cdiv(blocks.width * group, rows)
    with _launching_on(queries.device):
        _walk[(len(blocks.tables), kv_heads, parts)](
            queries,
            keys.numbers,
            values.numbers,
            keys.scales if scaled else keys.numbers,
            values.scales if scaled else values.numbers,
            blocks.firsts,
            blocks.tables,
            blocks.positions,
            out,
            num_entries,
            blocks.tables.stride(0),
            blocks.tables.shape[1] * PAGE,
            head_dim**-0.5,
            heads=heads,
            group=group,
            width=blocks.width,
            rows=rows,
            parts=parts,
            head_dim=head_dim,
            page_size=PAGE,
            scaled=scaled,
            num_warps=4 if rows <= 64 else 8,
            num_stages=_stages(rows, keys.numbers.dtype.itemsize),
            enable_fp_fusion=_FUSED,
        )


def _launching_on(device: torch.device) -> AbstractContextManager[None]:
    """Launch on this device, where Triton would on the current one; without a GPU its interpreter runs kernels."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


@cache
def _shared_bytes(device: torch.device) -> int:
    if device.type != "cuda":
        return _LARGE_SHARED
    found = torch.cuda.get_device_properties(device)
    return int(getattr(found, "shared_memory_per_block_optin", found.shared_memory_per_block))  # AMD's have no other


def most_rows(itemsize: int, shared_bytes: int) -> int:
    """Return how many rows of queries one program takes, so that they fit beside the pages in the shared memory of its
    processor: 64 KB before compute capability 8.0, 99 on most cards since, 163 on an A100 and 227 on an H100."""
    if shared_bytes >= _LARGE_SHARED:
        return _MOST_ROWS
    return _MOST_ROWS // (2 if itemsize <= 2 else 4)


def _stages(rows: int, itemsize: int) -> int:
    """Return how many pages are loaded ahead; a page's number must be loaded before it, which takes stages as well."""
    if rows == _LEAST_ROWS and itemsize <= 2:
        return 5
    return 3 if rows <= 64 else 2


@triton.jit
def _walk(
    queries: tl.tensor,
    keys: tl.tensor,
    values: tl.tensor,
    key_scales: tl.tensor,
    value_scales: tl.tensor,
    firsts: tl.tensor,
    tables: tl.tensor,
    positions: tl.tensor,
    out: tl.tensor,
    num_entries: int,
    table_stride: int,
    capacity: int,
    scale: float,
    heads: tl.constexpr,
    group: tl.constexpr,
    width: tl.constexpr,
    rows: tl.constexpr,
    parts: tl.constexpr,
    head_dim: tl.constexpr,
    page_size: tl.constexpr,
    scaled: tl.constexpr,
) -> None:
    block = tl.program_id(0)
    kv_head = tl.program_id(1)
    position = tl.load(positions + block).to(tl.int32)
    length = tl.minimum(position + width, capacity)
    row = tl.arange(0, rows)
    if parts > 1:
        row += tl.program_id(2) * rows
    dim = tl.arange(0, head_dim)
    offset = tl.arange(0, page_size)
    real = (row < width * group)[:, None]
    token = tl.load(firsts + block).to(tl.int64) + row // group
    own = (token * heads + kv_head * group + row % group)[:, None] * head_dim + dim[None, :]
    query = tl.load(queries + own, mask=real, other=0.0)
    last = position + row // group
    table = tables + block * table_stride
    first = kv_head.to(tl.int64) * num_entries
    largest = tl.full([rows], float("-inf"), tl.float32)
    total = tl.zeros([rows], tl.float32)
    summed = tl.zeros([rows, head_dim], tl.float32)
    for start in range(0, length, page_size):
        inside = start + offset < length
        page = tl.load(table + start // page_size)
        entry = first + page * page_size + offset
        at = entry[:, None] * head_dim + dim[None, :]
        key = _read(keys + at, inside, query, scaled)
        score = tl.dot(query, tl.trans(key), input_precision="ieee") * scale
        if scaled:
            score *= tl.load(key_scales + entry)[None, :]
        seen = inside[None, :] & ((start + offset)[None, :] <= last[:, None])
        score = tl.where(seen, score, float("-inf"))
        larger = tl.maximum(largest, tl.max(score, 1))
        share = tl.exp(score - larger[:, None])
        shrink = tl.exp(largest - larger)
        total = total * shrink + tl.sum(share, 1)
        value = _read(values + at, inside, query, scaled)
        if scaled:
            share *= tl.load(value_scales + entry)[None, :]
        found = tl.dot(share.to(query.dtype), value, input_precision="ieee")
        summed = summed * shrink[:, None] + found
        largest = larger
    tl.store(out + own, (summed / total[:, None]).to(query.dtype), mask=real)


@triton.jit
def _read(page: tl.tensor, inside: tl.tensor, query: tl.tensor, scaled: tl.constexpr) -> tl.tensor:
    """Load a page in the queries' type. In 8 bits without a mask, which would cost registers: what is behind a sequence
    is finite, as the engine clears its pages before, and is multiplied by 0."""
    return tl.load(page).to(query.dtype) if scaled else tl.load(page, mask=inside[:, None], other=0.0)


def write_pages(stored_keys: Stored, stored_values: Stored, keys: Tensor, values: Tensor, moves: Moves) -> None:
    """Write new keys and values to the cache, see kv_cache.Write."""
    num, (kv_heads, num_entries, head_dim) = len(moves.sources), stored_keys.numbers.shape
    scaled = stored_keys.scales is not None
    with _launching_on(keys.device):
        _write[(triton.cdiv(num, _TOKENS), kv_heads)](
            stored_keys.numbers,
            stored_values.numbers,
            stored_keys.scales if scaled else stored_keys.numbers,
            stored_values.scales if scaled else stored_values.numbers,
            keys,
            values,
            moves.sources,
            moves.targets,
            num,
            num_entries,
            keys.stride(0),
            keys.stride(1),
            values.stride(0),
            values.stride(1),
            head_dim=head_dim,
            tokens=_TOKENS,
            scaled=scaled,
            largest_int8=LARGEST_INT8,
            least=LEAST,
            enable_fp_fusion=_FUSED,
        )


@triton.jit(do_not_specialize=["num"])
def _write(
    stored_keys: tl.tensor,
    stored_values: tl.tensor,
    key_scales: tl.tensor,
    value_scales: tl.tensor,
    keys: tl.tensor,
    values: tl.tensor,
    sources: tl.tensor,
    targets: tl.tensor,
    num: int,
    num_entries: int,
    key_stride: int,
    key_head_stride: int,
    value_stride: int,
    value_head_stride: int,
    head_dim: tl.constexpr,
    tokens: tl.constexpr,
    scaled: tl.constexpr,
    largest_int8: tl.constexpr,
    least: tl.constexpr,
) -> None:
    move = tl.program_id(0) * tokens + tl.arange(0, tokens)
    head = tl.program_id(1).to(tl.int64)
    inside = (move < num)[:, None]
    source = tl.load(sources + move, mask=move < num, other=0)[:, None]
    entry = head * num_entries + tl.load(targets + move, mask=move < num, other=0)
    dim = tl.arange(0, head_dim)[None, :]
    at = entry[:, None] * head_dim + dim
    key = tl.load(keys + source * key_stride + head * key_head_stride + dim, mask=inside, other=0.0)
    value = tl.load(values + source * value_stride + head * value_head_stride + dim, mask=inside, other=0.0)
    if scaled:
        key, key_scale = _quantise_tokens(key, largest_int8, least)
        value, value_scale = _quantise_tokens(value, largest_int8, least)
        tl.store(key_scales + entry, key_scale, mask=move < num)
        tl.store(value_scales + entry, value_scale, mask=move < num)
    tl.store(stored_keys + at, key, mask=inside)
    tl.store(stored_values + at, value, mask=inside)


@triton.jit
def _quantise_tokens(x: tl.tensor, largest_int8: tl.constexpr, least: tl.constexpr) -> tuple[tl.tensor, tl.tensor]:
    """Do as `stored.quantise_tokens`, bit for bit."""
    wide = x.to(tl.float32)
    unless_finite = tl.sum(wide * 0, 1)
    scale = tl.maximum(tl.max(tl.abs(wide), 1), least) * (1 / largest_int8) + unless_finite
    numbers = libdevice.rint(tl.div_rn(wide, scale[:, None]))
    return tl.clamp(numbers, -float(largest_int8), float(largest_int8)).to(tl.int8), scale


def gate_and_quantise(states: Tensor) -> tuple[Tensor, Tensor]:
    """Compute silu(gate) * up of (tokens, 2 * width), gates first, and quantise it as `linear.quantise` does.

    Returns (tokens, width) float8 and a scale a token, (tokens, 1). A row is read once and kept, where a compiler makes
    two passes over it.
    """
    width = states.shape[1] // 2
    fed = states.new_empty((len(states), width), dtype=torch.float8_e4m3fn)
    scales = states.new_empty((len(states), 1), dtype=torch.float32)
    with _launching_on(states.device):
        _gate_row[(len(states),)](
            states,
            fed,
            scales,
            width,
            largest_number=LARGEST,
            columns=triton.next_power_of_2(width),
            num_warps=16,
            enable_fp_fusion=_FUSED,
        )
    return fed, scales


@triton.jit
def _gate_row(
    states: tl.tensor,
    fed: tl.tensor,
    scales: tl.tensor,
    width: int,
    largest_number: tl.constexpr,
    columns: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, columns)
    inside = column < width
    gate = tl.load(states + row * 2 * width + column, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(states + row * 2 * width + width + column, mask=inside, other=0.0).to(tl.float32)
    found = gate / (1 + tl.exp(-gate)) * up
    unless_finite = tl.sum(found * 0)  # NaN where a number is not finite, which a maximum may pass over
    scale = tl.maximum(tl.max(tl.abs(found)), 1e-12) / largest_number + unless_finite
    shrunk = tl.clamp(found / scale, -largest_number, largest_number)
    tl.store(fed + row * width + column, shrunk.to(tl.float8e4nv), mask=inside)
    tl.store(scales + row, scale)
