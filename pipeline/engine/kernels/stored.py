"""Stored keys or values of the cache: in the network's type, or in 8 bits with a scale a token and head."""

from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.engine.kernels.pages import PAGE

LARGEST_INT8 = 127
LEAST = 1e-12  # stands for the largest number of a row of zeros


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """The keys, or the values, of all entries of a cache, or of some."""

    numbers: Tensor  # (kv_heads, entries, head_dim)
    scales: Tensor | None = None  # (kv_heads, entries) float32: of int8 numbers, which they are multiplied by

    def take(self, entries: Tensor) -> "Stored":
        """Copy these entries, (n,)."""
        scales = None if self.scales is None else self.scales[:, entries]
        return Stored(numbers=self.numbers[:, entries], scales=scales)

    def put(self, entries: Tensor, new: "Stored") -> None:
        """Write to these entries, (n,), what is packed as this cache holds it."""
        self.numbers[:, entries] = new.numbers
        if self.scales is not None:
            assert new.scales is not None
            self.scales[:, entries] = new.scales

    def zero(self, pages: Tensor) -> None:
        """Zero all entries of these pages, (n,)."""
        for held in (self.numbers, self.scales):
            if held is not None:
                held.unflatten(1, (-1, PAGE)).index_fill_(1, pages, 0)

    def pack(self, new: Tensor) -> "Stored":
        """Return new ones, (kv_heads, n, head_dim), as this cache holds them."""
        if self.scales is None:
            return Stored(numbers=new)
        numbers, scales = quantise_tokens(new)
        return Stored(numbers=numbers, scales=scales)

    def read(self, dtype: torch.dtype) -> Tensor:
        """Return what all entries stand for, (kv_heads, entries, head_dim)."""
        if self.scales is None:
            return self.numbers
        return (self.numbers.float() * self.scales[..., None]).to(dtype)


def empty_cache(size: tuple[int, int, int], dtype: torch.dtype, device: torch.device, *, int8: bool) -> Stored:
    """Return a cache of (kv_heads, entries, head_dim).

    Zeros, not whatever was there: masked entries are multiplied by 0, which a NaN survives.
    """
    numbers = torch.zeros(size, dtype=torch.int8 if int8 else dtype, device=device)
    return Stored(numbers=numbers, scales=torch.zeros(size[:2], device=device) if int8 else None)


def quantise_tokens(x: Tensor) -> tuple[Tensor, Tensor]:
    """Round (..., head_dim) to int8 with a float32 scale a row, (...): x is about their product.

    The scale is NaN where a number of the row is not finite, as no int8 could say so.
    """
    wide = x.float()
    largest = wide.abs().amax(-1).clamp(min=LEAST)
    scales = largest * (1 / LARGEST_INT8) + (wide * 0).sum(-1)
    numbers = (wide / scales[..., None]).round().clamp(-LARGEST_INT8, LARGEST_INT8)
    return numbers.nan_to_num(0.0).to(torch.int8), scales
