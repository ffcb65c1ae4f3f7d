"""Kernels of a prefill that do in one what others do in several: what they offer, and where they can be had."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from pipeline.engine.kernels.device import to_device
from pipeline.engine.kernels.layout import Segment
from pipeline.engine.kernels.packages import is_there
from schemas.engine import PrefillKernels
from schemas.errors import Refused

PACKAGES = {"quack": "quack-kernels[cu13]", "flash_attn.cute": "flash-attn-4[cu13]"}  # by module, as they are installed

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


def prefill_kernels(
    asked: PrefillKernels | None, device: torch.device, dtype: torch.dtype, *, fits: bool = True
) -> PrefillKernels:
    """Which a prefill has on this device, for a network whose widths fit their tiles or do not; raises ValueError where
    those that are asked for cannot run."""
    hopper = device.type == "cuda" and torch.cuda.get_device_capability(device) == (9, 0)
    runs = hopper and dtype.itemsize == 2 and fits
    if asked == "cute" and not runs:
        needs = "a GPU of compute capability 9.0, 16 bits, heads of 64 or 128 and layers of multiples of 64"
        raise Refused(f"prefill_kernels 'cute' need {needs}, got {dtype} on {device}")
    if asked == "torch" or not runs:
        return "torch"
    missing = missing_packages()  # here, as looking for a module imports the package that it is in
    if asked == "cute" and missing:
        names = " ".join(f"'{package}'" for package in missing)
        raise Refused(f"prefill_kernels 'cute' need packages that are not installed: pip install {names}")
    return "torch" if missing else "cute"


def missing_packages() -> list[str]:
    """Those that the fused kernels come from and that are not installed."""
    return [package for module, package in PACKAGES.items() if not is_there(module)]


def fused_kernels(kernels: PrefillKernels) -> Fused | None:
    """The kernels themselves; None for PyTorch's own."""
    if kernels == "torch":
        return None
    os.environ.setdefault("FLASH_ATTENTION_CUTE_DSL_CACHE_ENABLED", "1")  # read as its package is imported: later
    # processes of a machine need not compile again, as QuACK's do not
    from pipeline.engine.kernels.hopper import Hopper  # here, as its packages are for some GPUs alone

    return Hopper()
