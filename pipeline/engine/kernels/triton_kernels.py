"""Our own kernels on a GPU: attention to pages, each sequence read only as far as it reaches; writes to pages; and the
gates of an 8-bit feed-forward, quantised row by row."""

# mypy: disable-error-code="import-not-found, untyped-decorator, no-any-return"
# Triton comes with torch for GPUs alone; nothing imports this module elsewhere.

import torch
import triton
import triton.language as tl
from torch import Tensor

from pipeline.engine.kernels.layout import Moves, QueryBlocks
from pipeline.engine.kernels.linear import LARGEST
from pipeline.engine.kernels.pages import PAGE

_TOKENS = 16  # written at once
_LEAST_ROWS = 16  # of a product on tensor cores; heads that share keys are padded to it


def attend_pages(queries: Tensor, keys: Tensor, values: Tensor, blocks: QueryBlocks, out: Tensor) -> None:
    """Let every block's tokens attend to the pages of their sequence, up to their own positions.

    `keys` and `values` are the cache's, (kv_heads, entries, head_dim); `queries` and `out` are (tokens, heads,
    head_dim), contiguous. One program walks over the keys of one block and head group in order, a page at a time: what
    other sequences hold, how long they are, or where the pages are, changes no bit of the result.
    """
    _, heads, head_dim = queries.shape
    kv_heads = len(keys)
    group = heads // kv_heads
    rows = max(_LEAST_ROWS, triton.next_power_of_2(blocks.width * group))
    with torch.cuda.device(queries.device):  # where triton launches, whatever device the tensors are on
        _walk[(len(blocks.tables), kv_heads)](
            queries,
            keys,
            values,
            blocks.firsts,
            blocks.tables,
            blocks.positions,
            out,
            keys.stride(0),
            blocks.tables.stride(0),
            blocks.tables.shape[1] * PAGE,
            head_dim**-0.5,
            heads=heads,
            group=group,
            width=blocks.width,
            rows=rows,
            head_dim=head_dim,
            page_size=PAGE,
            num_warps=4 if rows <= 64 else 8,
            num_stages=_stages(rows, keys.dtype.itemsize),
        )


def _stages(rows: int, itemsize: int) -> int:
    """Return how many pages are loaded ahead; a page's number must be loaded before it, which takes stages as well."""
    if rows == _LEAST_ROWS and itemsize == 2:
        return 5
    return 3 if rows <= 64 else 2


@triton.jit
def _walk(
    queries: tl.tensor,
    keys: tl.tensor,
    values: tl.tensor,
    firsts: tl.tensor,
    tables: tl.tensor,
    positions: tl.tensor,
    out: tl.tensor,
    head_stride: int,
    table_stride: int,
    capacity: int,
    scale: float,
    heads: tl.constexpr,
    group: tl.constexpr,
    width: tl.constexpr,
    rows: tl.constexpr,
    head_dim: tl.constexpr,
    page_size: tl.constexpr,
) -> None:
    block = tl.program_id(0)
    kv_head = tl.program_id(1)
    position = tl.load(positions + block).to(tl.int32)
    length = tl.minimum(position + width, capacity)
    row = tl.arange(0, rows)
    dim = tl.arange(0, head_dim)
    offset = tl.arange(0, page_size)
    real = (row < width * group)[:, None]
    token = tl.load(firsts + block).to(tl.int64) + row // group
    own = (token * heads + kv_head * group + row % group)[:, None] * head_dim + dim[None, :]
    query = tl.load(queries + own, mask=real, other=0.0)
    last = position + row // group
    table = tables + block * table_stride
    first = kv_head.to(tl.int64) * head_stride
    largest = tl.full([rows], float("-inf"), tl.float32)
    total = tl.zeros([rows], tl.float32)
    summed = tl.zeros([rows, head_dim], tl.float32)
    for start in range(0, length, page_size):
        inside = start + offset < length
        page = tl.load(table + start // page_size)
        at = first + (page * page_size + offset)[:, None] * head_dim + dim[None, :]
        key = tl.load(keys + at, mask=inside[:, None], other=0.0)
        score = tl.dot(query, tl.trans(key), input_precision="ieee") * scale
        seen = inside[None, :] & ((start + offset)[None, :] <= last[:, None])
        score = tl.where(seen, score, float("-inf"))
        larger = tl.maximum(largest, tl.max(score, 1))
        share = tl.exp(score - larger[:, None])
        shrink = tl.exp(largest - larger)
        value = tl.load(values + at, mask=inside[:, None], other=0.0)
        summed = summed * shrink[:, None] + tl.dot(share.to(value.dtype), value, input_precision="ieee")
        total = total * shrink + tl.sum(share, 1)
        largest = larger
    tl.store(out + own, (summed / total[:, None]).to(query.dtype), mask=real)


def write_pages(stored_keys: Tensor, stored_values: Tensor, keys: Tensor, values: Tensor, moves: Moves) -> None:
    """Write new keys and values to the cache, see kv_cache.Write."""
    num, (kv_heads, _, head_dim) = len(moves.sources), stored_keys.shape
    with torch.cuda.device(keys.device):
        _write[(triton.cdiv(num, _TOKENS), kv_heads)](
            stored_keys,
            stored_values,
            keys,
            values,
            moves.sources,
            moves.targets,
            num,
            stored_keys.stride(0),
            keys.stride(0),
            keys.stride(1),
            values.stride(0),
            values.stride(1),
            head_dim=head_dim,
            tokens=_TOKENS,
        )


@triton.jit(do_not_specialize=["num"])
def _write(
    stored_keys: tl.tensor,
    stored_values: tl.tensor,
    keys: tl.tensor,
    values: tl.tensor,
    sources: tl.tensor,
    targets: tl.tensor,
    num: int,
    head_stride: int,
    key_stride: int,
    key_head_stride: int,
    value_stride: int,
    value_head_stride: int,
    head_dim: tl.constexpr,
    tokens: tl.constexpr,
) -> None:
    move = tl.program_id(0) * tokens + tl.arange(0, tokens)
    head = tl.program_id(1).to(tl.int64)
    inside = (move < num)[:, None]
    source = tl.load(sources + move, mask=move < num, other=0)[:, None]
    target = tl.load(targets + move, mask=move < num, other=0)[:, None]
    dim = tl.arange(0, head_dim)[None, :]
    at = head * head_stride + target * head_dim + dim
    key = tl.load(keys + source * key_stride + head * key_head_stride + dim, mask=inside)
    value = tl.load(values + source * value_stride + head * value_head_stride + dim, mask=inside)
    tl.store(stored_keys + at, key, mask=inside)
    tl.store(stored_values + at, value, mask=inside)


def gate_and_quantise(states: Tensor) -> tuple[Tensor, Tensor]:
    """Compute silu(gate) * up of (tokens, 2 * width), gates first, and quantise it as `linear.quantise` does.

    Returns (tokens, width) float8 and a scale a token, (tokens, 1). A row is read once and kept, where a compiler makes
    two passes over it.
    """
    width = states.shape[1] // 2
    fed = states.new_empty((len(states), width), dtype=torch.float8_e4m3fn)
    scales = states.new_empty((len(states), 1), dtype=torch.float32)
    with torch.cuda.device(states.device):
        _gate_row[(len(states),)](
            states, fed, scales, width, largest_number=LARGEST, columns=triton.next_power_of_2(width), num_warps=16
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
