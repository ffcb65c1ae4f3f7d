"""Attention of a prompt to itself, and of tokens to what their slots hold."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from pipeline.engine.places import Blocks, Segment, round_up

# The CPU's flash kernel walks over keys in blocks of this: whole blocks behind a row change none of its bits.
SPAN_STEP = 512

Causal = Callable[[Tensor, Tensor, Tensor], Tensor]  # see `causal`
# queries (tokens, heads, head_dim), keys and values of all slots, where the queries stand, what is written: as queries
Attend = Callable[[Tensor, Tensor, Tensor, Blocks, Tensor], None]


def causal(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Every token of one prompt attends to those before it and itself: (tokens, heads, head_dim), fewer heads in keys.

    No mask: what stands behind a prompt is its padding, which causality hides from it, so flash kernels stay usable.
    """
    queries, keys, values = (one.transpose(0, 1)[None] for one in (queries, keys, values))
    attended = scaled_dot_product_attention(queries, keys, values, is_causal=True, enable_gqa=True)
    return attended[0].transpose(0, 1)


def causal_behind_prefix(
    queries: Tensor, keys: Tensor, values: Tensor, segment: Segment, attend: Causal = causal
) -> Tensor:
    """`causal` of a segment of the queries, whose slot, (slots, kv_heads, capacity, head_dim), holds the job's prefix
    and what is its own.

    As many queries as the prefix has tokens stand before its own, whosever they are, and are dropped: each of its own
    stands where it would in the whole prompt, in the same block of a kernel, and has the same numbers bit for bit.
    """
    first, end = segment.first - segment.start, segment.first + segment.width
    asked = queries[first:end] if first >= 0 else pad(queries[:end], (0, 0, 0, 0, -first, 0))
    own_keys, own_values = (one[segment.slots[0], :, : len(asked)].transpose(0, 1) for one in (keys, values))
    return attend(asked, own_keys, own_values)[segment.start :]


def cached(queries: Tensor, keys: Tensor, values: Tensor, positions: Tensor) -> Tensor:
    """New tokens, (rows, length, heads, head_dim), attend to their slots, (rows, kv_heads, span, head_dim), up to
    their own (rows, length) positions.

    The heads that share keys stand in the queries' length, so that keys and values are read once and never repeated.
    """
    rows, length, heads, head_dim = queries.shape
    kv_heads, span = keys.shape[1], keys.shape[2]
    group = heads // kv_heads
    packed = queries.unflatten(2, (kv_heads, group)).permute(0, 2, 3, 1, 4).flatten(2, 3)
    mask = _mask_after(positions, span, queries.dtype)[:, None, None]
    mask = mask.expand(rows, 1, group, length, span).flatten(2, 3).expand(rows, kv_heads, group * length, span)
    attended: Tensor = scaled_dot_product_attention(packed, keys, values, attn_mask=mask)
    return attended.view(rows, kv_heads, group, length, head_dim).permute(0, 3, 1, 2, 4).reshape(queries.shape)


def attend_together(queries: Tensor, keys: Tensor, values: Tensor, blocks: Blocks, out: Tensor, *, span: int) -> None:
    """One token of every slot in turn attends to the slot's first `span` places, up to its own position."""
    rows, reached = slice(len(keys)), slice(span)
    keys, values = keys[:, :, reached], values[:, :, reached]
    out[rows] = cached(queries[rows, None], keys, values, blocks.positions[:, None])[:, 0]


def attend_one_by_one(queries: Tensor, keys: Tensor, values: Tensor, blocks: Blocks, out: Tensor) -> None:
    """Every block's tokens attend to their slot, (slots, kv_heads, capacity, head_dim), up to their own positions: one
    block after the other, as far as it reaches, so that none knows of the others."""
    own = torch.arange(blocks.width, device=queries.device)
    places = zip(blocks.firsts.tolist(), blocks.slots.tolist(), blocks.positions.tolist(), strict=True)
    for first, slot, position in places:
        here, reached = slice(first, first + blocks.width), slice(round_up(position + blocks.width, SPAN_STEP))
        key, value = keys[None, slot, :, reached], values[None, slot, :, reached]
        out[here] = cached(queries[None, here], key, value, (position + own)[None])[0]


def _mask_after(positions: Tensor, span: int, dtype: torch.dtype) -> Tensor:
    """What a token at (rows, length) positions must not see, as numbers to add: (rows, length, span)."""
    places = torch.arange(span, device=positions.device)
    zeros = torch.zeros((*positions.shape, span), dtype=dtype, device=positions.device)
    return zeros.masked_fill_(places > positions[..., None], -torch.inf)
