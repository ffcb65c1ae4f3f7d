"""Fused kernels of a prefill: what an implementation offers, and how it is told where segments are."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from pipeline.engine.kernels.device import to_device
from pipeline.engine.kernels.layout import Segment

_LONG = 1024  # below this length a package has another kernel


@dataclass(frozen=True, slots=True, kw_only=True)
class SelfContained:
    """The segments of a batch that attend to themselves alone, as variable-length kernels take them; int32."""

    starts: Tensor  # (segments + 1,) the index of each one's first token, and the number of all padded tokens
    lengths: Tensor  # (segments,) padded tokens
    longest: int  # an upper bound of the lengths; 0 where there are no segments


class Fused(Protocol):
    """Products with what follows them, and attention of many prompts at once; on a GPU, in 16 bits."""

    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Multiply (tokens, in) with a weight of (out, in), add the bias: (tokens, out)."""

    def add_product(self, total: Tensor, x: Tensor, weight: Tensor) -> None:
        """Add the product of (tokens, in) and (out, in) to `total`, (tokens, out), in place."""

    def gated_product(self, x: Tensor, weight: Tensor) -> Tensor:
        """Compute silu(gate) * up, (tokens, out / 2); `weight` is that of gate and up, one after the other."""

    def causal_each(self, queries: Tensor, keys: Tensor, values: Tensor, segments: SelfContained) -> Tensor:
        """Let every token of these segments attend to those before it and itself.

        Returns (padded tokens, heads, head_dim), undefined outside the segments.
        """

    def causal(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Do the same for one prompt, with the same numbers bit for bit."""


def self_contained(segments: Sequence[Segment], num_padded_tokens: int, device: torch.device) -> SelfContained:
    """Collect the segments that begin their prompts."""
    whole = [segment for segment in segments if not segment.start]
    starts, lengths = [*(segment.first for segment in whole), num_padded_tokens], [segment.width for segment in whole]
    return SelfContained(
        starts=to_device(np.array(starts, np.int32), device),
        lengths=to_device(np.array(lengths, np.int32), device),
        longest=max(lengths, default=0) and max(_LONG, *lengths),
    )
