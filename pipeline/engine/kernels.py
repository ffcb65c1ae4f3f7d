"""The decode step's attention on a GPU: every slot is read to its own length, however long the others are."""

# mypy: disable-error-code="import-not-found, untyped-decorator, no-any-return"
# Triton comes with torch for GPUs alone; nothing imports this module elsewhere.

import torch
import triton
import triton.language as tl
from torch import Tensor

_PLACES = 64  # keys and values read at once
_LEAST_ROWS = 16  # of a product on tensor cores; the heads that share keys are filled up to it


def attend_slots(queries: Tensor, keys: Tensor, values: Tensor, positions: Tensor) -> Tensor:
    """One token of every slot, (slots, 1, heads, head_dim), attends to its slot up to its own (slots, 1) position.

    One program walks over the keys of one slot and head group in order: what another slot holds, or how long it is,
    changes no bit of the result.
    """
    slots, _, heads, head_dim = queries.shape
    kv_heads = keys.shape[1]
    out = torch.empty_like(queries, memory_format=torch.contiguous_format)
    with torch.cuda.device(queries.device):  # where triton launches, whatever device the tensors are on
        _walk[(slots, kv_heads)](
            queries.contiguous(),
            keys,
            values,
            positions,
            out,
            keys.stride(0),
            keys.stride(1),
            positions.stride(0),
            head_dim**-0.5,
            heads=heads,
            group=heads // kv_heads,
            rows=max(_LEAST_ROWS, triton.next_power_of_2(heads // kv_heads)),
            head_dim=head_dim,
            places=_PLACES,
            num_warps=4,
            num_stages=3,
        )
    return out


@triton.jit
def _walk(
    queries: tl.tensor,
    keys: tl.tensor,
    values: tl.tensor,
    positions: tl.tensor,
    out: tl.tensor,
    slot_stride: int,
    head_stride: int,
    position_stride: int,
    scale: float,
    heads: tl.constexpr,
    group: tl.constexpr,
    rows: tl.constexpr,
    head_dim: tl.constexpr,
    places: tl.constexpr,
) -> None:
    slot = tl.program_id(0).to(tl.int64)
    kv_head = tl.program_id(1)
    length = tl.load(positions + slot * position_stride).to(tl.int32) + 1
    row = tl.arange(0, rows)
    dim = tl.arange(0, head_dim)
    place = tl.arange(0, places)
    own = (slot * heads + kv_head * group + row)[:, None] * head_dim + dim[None, :]
    query = tl.load(queries + own, mask=(row < group)[:, None], other=0.0)
    first = slot * slot_stride + kv_head * head_stride
    largest = tl.full([rows], float("-inf"), tl.float32)
    total = tl.zeros([rows], tl.float32)
    summed = tl.zeros([rows, head_dim], tl.float32)
    for start in range(0, length, places):
        inside = start + place < length
        at = first + (start + place)[:, None] * head_dim + dim[None, :]
        key = tl.load(keys + at, mask=inside[:, None], other=0.0)
        score = tl.dot(query, tl.trans(key), input_precision="ieee") * scale
        score = tl.where(inside[None, :], score, float("-inf"))
        larger = tl.maximum(largest, tl.max(score, 1))
        share = tl.exp(score - larger[:, None])
        shrink = tl.exp(largest - larger)
        value = tl.load(values + at, mask=inside[:, None], other=0.0)
        summed = summed * shrink[:, None] + tl.dot(share.to(value.dtype), value, input_precision="ieee")
        total = total * shrink + tl.sum(share, 1)
        largest = larger
    tl.store(out + own, (summed / total[:, None]).to(query.dtype), mask=(row < group)[:, None])
