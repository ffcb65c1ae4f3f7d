"""Attention by PyTorch: of a prompt to itself, and of tokens to the cached keys of their sequences."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from pipeline.engine.kernels.layout import QueryBlocks, Segment, round_up
from pipeline.engine.kernels.pages import PAGE, num_pages
from pipeline.engine.kernels.stored import Stored

# The CPU's flash kernel walks over keys in blocks of this: whole blocks behind a sequence change none of its bits.
SPAN_STEP = 512
_TOGETHER = 16  # sequences whose pages are copied side by side at a time

Causal = Callable[[Tensor, Tensor, Tensor], Tensor]  # see `causal`
# queries (tokens, heads, head_dim), the cache's keys and values, blocks of the queries, output of the queries' shape
Attend = Callable[[Tensor, Stored, Stored, QueryBlocks, Tensor], None]


def causal(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Let every token of one prompt attend to those before it and itself: (tokens, heads, head_dim).

    Keys and values may have fewer heads than queries.
    No mask: a prompt's padding is behind it, where causality hides it, so flash kernels stay usable.
    """
    queries, keys, values = (one.transpose(0, 1)[None] for one in (queries, keys, values))
    attended = scaled_dot_product_attention(queries, keys, values, is_causal=True, enable_gqa=True)
    return attended[0].transpose(0, 1)


def causal_behind_prefix(
    queries: Tensor, stored: tuple[Stored, Stored], table: Tensor, segment: Segment, attend: Causal = causal
) -> Tensor:
    """Run `causal` for a segment behind the job's prefix, whose keys and values are in the sequence's pages as well.

    Prepends `segment.start` queries of any kind and discards their output: every query of the segment is then in the
    same block of the kernel as in the whole prompt, and has the same numbers bit for bit.
    """
    first, end = segment.first - segment.start, segment.first + segment.width
    asked = queries[first:end] if first >= 0 else pad(queries[:end], (0, 0, 0, 0, -first, 0))
    reached = table[: num_pages(len(asked))]
    held = [paged(one, reached, queries.dtype)[:, : len(asked)].transpose(0, 1) for one in stored]
    if not segment.ends:  # behind it the pages have one sequence's own suffix, which the others must not even mask
        for one in held:
            one[segment.end :] = 0
    return attend(asked, *held)[segment.start :]


def paged(stored: Stored, tables: Tensor, dtype: torch.dtype) -> Tensor:
    """Gather from the cache the pages of each table, (..., pages), one after the other: (kv_heads, ..., tokens,
    head_dim)."""

    def gather(one: Tensor) -> Tensor:  # whole pages: no index an element
        pages: Tensor = one.unflatten(1, (-1, PAGE)).index_select(1, tables.flatten())
        return pages.flatten(1, 2)

    scales = None if stored.scales is None else gather(stored.scales)
    held = Stored(numbers=gather(stored.numbers), scales=scales).read(dtype)
    apart: Tensor = held.unflatten(1, (*tables.shape[:-1], -1))
    return apart


def cached(queries: Tensor, keys: Tensor, values: Tensor, positions: Tensor) -> Tensor:
    """Let new tokens, (rows, length, heads, head_dim), attend to the keys of their rows, (rows, kv_heads, span,
    head_dim), up to their own positions, (rows, length).

    Heads that share keys are laid along the queries' length, so that keys and values are read once, never repeated.
    """
    rows, length, heads, head_dim = queries.shape
    kv_heads, span = keys.shape[1], keys.shape[2]
    group = heads // kv_heads
    packed = queries.unflatten(2, (kv_heads, group)).permute(0, 2, 3, 1, 4).flatten(2, 3)
    mask = _mask_after(positions, span, queries.dtype)[:, None, None]
    mask = mask.expand(rows, 1, group, length, span).flatten(2, 3).expand(rows, kv_heads, group * length, span)
    attended: Tensor = scaled_dot_product_attention(packed, keys, values, attn_mask=mask)
    return attended.view(rows, kv_heads, group, length, head_dim).permute(0, 3, 1, 2, 4).reshape(queries.shape)


def attend_together(
    queries: Tensor, keys: Stored, values: Stored, blocks: QueryBlocks, out: Tensor, *, span: int
) -> None:
    """Let one token of every slot attend to its sequence's first `span` tokens, up to its own position."""
    tables = blocks.tables[:, : num_pages(span)]
    for first in range(0, len(tables), _TOGETHER):
        rows = slice(first, min(first + _TOGETHER, len(tables)))
        key, value = (paged(one, tables[rows], queries.dtype).transpose(0, 1) for one in (keys, values))
        out[rows] = cached(queries[rows, None], key, value, blocks.positions[rows, None])[:, 0]


def attend_one_by_one(queries: Tensor, keys: Stored, values: Stored, blocks: QueryBlocks, out: Tensor) -> None:
    """Let every block's tokens attend to the pages of their sequence, up to their own positions.

    One block after the other, each only as far as it reaches, so that none depends on the others.
    """
    own = torch.arange(blocks.width, device=queries.device)
    for first, table, position in zip(blocks.firsts.tolist(), blocks.tables, blocks.positions.tolist(), strict=True):
        here = slice(first, first + blocks.width)
        reached = table[: num_pages(round_up(position + blocks.width, SPAN_STEP))]
        key, value = (paged(one, reached, queries.dtype)[None] for one in (keys, values))
        out[here] = cached(queries[None, here], key, value, (position + own)[None])[0]


def _mask_after(positions: Tensor, span: int, dtype: torch.dtype) -> Tensor:
    """Return what to add to scores, (rows, length, span): -inf for keys behind the (rows, length) positions."""
    keys = torch.arange(span, device=positions.device)
    zeros = torch.zeros((*positions.shape, span), dtype=dtype, device=positions.device)
    return zeros.masked_fill_(keys > positions[..., None], -torch.inf)
