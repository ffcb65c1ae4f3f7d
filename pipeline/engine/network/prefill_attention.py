"""Attention of a prefill's segments, each to its own prompt, in one layer of one device."""

from functools import partial

import torch
from torch import Tensor

from pipeline.engine.kernels.device import Streams
from pipeline.engine.kernels.interface import Fused, self_contained
from pipeline.engine.kernels.layout import Layout, Segment
from pipeline.engine.kernels.stored import Stored
from pipeline.engine.kernels.torch_attention import Attend, causal, causal_behind_prefix


class PrefillAttention:
    """Lets the tokens of a batch attend: made once a prefill and device, called once a layer.

    Keys and values of the batch must be in the cache already: `cached` are those of all its entries, see KVCache.of.
    """

    def __init__(
        self, layout: Layout, num_padded_tokens: int, attend_pages: Attend, fused: Fused | None, streams: Streams
    ) -> None:
        self._layout, self._attend_pages, self._fused, self._streams = layout, attend_pages, fused, streams
        self._causal = fused.causal if fused else causal
        device = layout.positions.device
        self._together = self_contained(layout.segments, num_padded_tokens, device) if fused else None
        rows = zip(layout.segments, layout.tables, strict=True)
        self._one_by_one = [
            (segment, table)
            for segment, table in rows
            if len(segment.prefix) or (fused is None and not segment.continues)
        ]

    def all_tokens(self, queries: Tensor, keys: Tensor, values: Tensor, cached: tuple[Stored, Stored]) -> Tensor:
        """Attend from every token, (padded tokens, heads, head_dim); zero behind the last segment."""
        if self._fused is None or self._together is None:
            out = torch.empty_like(queries, memory_format=torch.contiguous_format)
        else:
            out = self._fused.causal_each(queries, keys, values, self._together)
        out[self._layout.num_used :] = 0

        def attend_one(segment: Segment, table: Tensor) -> None:
            own = slice(segment.first, segment.first + segment.width)
            if len(segment.prefix):
                out[own] = causal_behind_prefix(queries, cached, table, segment, self._causal)
            else:
                out[own] = causal(queries[own], keys[own], values[own])

        self._streams.run(partial(attend_one, *one) for one in self._one_by_one)
        if self._layout.continuing is not None:
            self._attend_pages(queries.contiguous(), *cached, self._layout.continuing, out)
        return out

    def sampled_tokens(self, queries: Tensor, cached: tuple[Stored, Stored]) -> Tensor:
        """Attend from the sampled tokens alone, (sampled, heads, head_dim); zero behind the last of them."""
        out = torch.zeros_like(queries, memory_format=torch.contiguous_format)
        self._attend_pages(queries.contiguous(), *cached, self._layout.sampled_blocks, out)
        return out
