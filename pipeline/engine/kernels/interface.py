"""Kernels of a prefill that do in one what others do in several: what they offer, and where they can be had."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from pipeline.engine.kernels.device import to_device
from pipeline.engine.kernels.layout import Segment

_LONG = 1024  # where all are short a package has another kernel


@dataclass(frozen=True, slots=True, kw_only=True)
class Sequences:
    """Where segments stand that attend to themselves alone; int32."""

    starts: Tensor  # (segments + 1,) their first places, and the number of all places
    lengths: Tensor  # (segments,) places
    longest: int  # at least; 0 where there are none


class Fused(Protocol):
    """Products with what comes behind them, and attention of many prompts at once; on a GPU, in 16 bits."""

    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """(tokens, in) times (out, in): (tokens, out)."""

    def add_product(self, total: Tensor, x: Tensor, weight: Tensor) -> None:
        """Add (tokens, in) times (out, in) to (tokens, out) where it stands."""

    def gated_product(self, x: Tensor, weight: Tensor) -> Tensor:
        """silu(gate) * up of (tokens, in) times the weights of gate and up, one behind the other: (tokens, out / 2)."""

    def causal_each(self, queries: Tensor, keys: Tensor, values: Tensor, sequences: Sequences) -> Tensor:
        """Every token of these segments attends to those before it and itself; (places, heads, head_dim), of which what
        is not theirs is undefined."""

    def causal(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """The same for one prompt, with the same numbers bit for bit."""


def sequences(segments: Sequence[Segment], num_places: int, device: torch.device) -> Sequences:
    """Where those of the segments stand that begin their prompts."""
    whole = [segment for segment in segments if not segment.start]
    starts, lengths = [*(segment.first for segment in whole), num_places], [segment.width for segment in whole]
    return Sequences(
        starts=to_device(np.array(starts, np.int32), device),
        lengths=to_device(np.array(lengths, np.int32), device),
        longest=max(lengths, default=0) and max(_LONG, *lengths),
    )
