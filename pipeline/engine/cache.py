"""The keys and values of every prompt at work: one slot each, allocated once."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.engine.spread import Part


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheShape:
    """Numbers a cache is made of; `capacity` is tokens a slot."""

    layers: int
    kv_heads: int
    head_dim: int
    slots: int
    capacity: int

    def slot_bytes(self, dtype: torch.dtype) -> int:
        """Memory of one slot in all layers."""
        return 2 * self.layers * self.kv_heads * self.capacity * self.head_dim * dtype.itemsize


class Cache:
    """A row's keys and values start at place 0 of its slot. One slot more than asked takes the dummy rows.

    `rotary` is the cosine and sine of the angles of every place, each (capacity, head_dim). What belongs to a layer is
    on the layer's device, and so is all that comes in for it; a slot to copy or clear may be named on any.
    """

    def __init__(self, shape: CacheShape, rotary: tuple[Tensor, Tensor], parts: Sequence[Part]) -> None:
        self.shape = shape
        self._rotary = [tuple(angles.to(part.device) for angles in rotary) for part in parts]
        dtype = rotary[0].dtype
        size = (shape.slots + 1, shape.kv_heads, shape.capacity, shape.head_dim)
        devices = [part.device for part in parts for _ in part.layers]
        # Zeros, not whatever was there: masked places are multiplied by 0, which a NaN survives.
        self._keys = [torch.zeros(size, dtype=dtype, device=device) for device in devices]
        self._values = [torch.zeros(size, dtype=dtype, device=device) for device in devices]

    def angles(self, part: int, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and sine of the angles at the positions, on the device of a part of the layers."""
        cos, sin = self._rotary[part]
        return cos[positions], sin[positions]

    def fill(self, layer: int, slots: Tensor, keys: Tensor, values: Tensor) -> None:
        """Write (rows, length, kv_heads, head_dim) to the beginning of the rows' slots."""
        length = keys.shape[1]
        self._keys[layer][:, :, :length].index_copy_(0, slots, keys.transpose(1, 2))
        self._values[layer][:, :, :length].index_copy_(0, slots, values.transpose(1, 2))

    def put(self, layer: int, slots: Tensor, positions: Tensor, entry: tuple[Tensor, Tensor]) -> None:
        """Write keys and values, each (rows, length, kv_heads, head_dim), to the rows' slots at (rows, length)."""
        for stored, new in zip((self._keys[layer], self._values[layer]), entry, strict=True):
            stored[slots[:, None], :, positions] = new

    def all(self, layer: int, span: int) -> tuple[Tensor, Tensor]:
        """Views of every slot's first `span` places, (slots, kv_heads, span, head_dim)."""
        return self._keys[layer][:-1, :, :span], self._values[layer][:-1, :, :span]

    def some(self, layer: int, slots: Tensor, span: int) -> tuple[Tensor, Tensor]:
        """Copies of some slots' first `span` places."""
        keys, values = self._keys[layer][:, :, :span], self._values[layer][:, :, :span]
        return keys.index_select(0, slots), values.index_select(0, slots)

    def copy(self, source: int, targets: Tensor, length: int) -> None:
        """Give other slots the first `length` places of a slot."""
        for stored in (*self._keys, *self._values):
            if targets.device != stored.device:
                targets = targets.to(stored.device)
            start = stored[:, :, :length]
            start.index_copy_(0, targets, start[source].expand(len(targets), *start.shape[1:]))

    def clear(self, slot: int) -> None:
        """Make a slot safe for its next row after numbers that overflowed."""
        for stored in (*self._keys, *self._values):
            stored[slot].zero_()
