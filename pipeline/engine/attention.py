"""Attention of a prompt to itself, and of new tokens to what their slots hold."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

# queries, keys, values, positions of the queries -> attended
Attend = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def causal(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Every token attends to those before it and itself: (rows, length, heads, head_dim), fewer heads in keys.

    No mask: a row is followed by its padding, which causality hides from it, so the flash kernels stay usable.
    """
    attended = scaled_dot_product_attention(
        queries.transpose(1, 2), keys.transpose(1, 2), values.transpose(1, 2), is_causal=True, enable_gqa=True
    )
    return attended.transpose(1, 2)


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


def _mask_after(positions: Tensor, span: int, dtype: torch.dtype) -> Tensor:
    """What a token at (rows, length) positions must not see, as numbers to add: (rows, length, span)."""
    places = torch.arange(span, device=positions.device)
    zeros = torch.zeros((*positions.shape, span), dtype=dtype, device=positions.device)
    return zeros.masked_fill_(places > positions[..., None], -torch.inf)
