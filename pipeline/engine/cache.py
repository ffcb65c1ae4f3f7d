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


@dataclass(frozen=True, slots=True, kw_only=True)
class Seats:
    """Where the tokens of rows go: the slot of each row, and the place in it that its first token takes."""

    slots: Sequence[int]
    starts: Sequence[int]


class Cache:
    """A row's keys and values start at place 0 of its slot. One slot more than asked takes the dummy rows.

    `rotary` is the cosine and sine of the angles of every place, each (capacity, head_dim). What belongs to a layer is
    on the layer's device, and so is all that comes in for it.
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

    def fill(self, layer: int, seats: Seats, keys: Tensor, values: Tensor) -> None:
        """Write (rows, length, kv_heads, head_dim) to the rows' seats, as far as their slots reach."""
        for stored, new in ((_wide(self._keys[layer]), _wide(keys)), (_wide(self._values[layer]), _wide(values))):
            for slot, start, row in zip(seats.slots, seats.starts, new, strict=True):
                places = stored[slot, :, start : start + len(row)]
                places.copy_(row[: places.shape[1]].transpose(0, 1))

    def put(self, layer: int, slots: Tensor, positions: Tensor, entry: tuple[Tensor, Tensor]) -> None:
        """Write keys and values, each (rows, length, kv_heads, head_dim), to the rows' slots at (rows, length)."""
        for stored, new in zip((self._keys[layer], self._values[layer]), entry, strict=True):
            stored[slots[:, None], :, positions] = new

    def all(self, layer: int, span: int) -> tuple[Tensor, Tensor]:
        """Views of every slot's first `span` places, (slots, kv_heads, span, head_dim)."""
        return self._keys[layer][:-1, :, :span], self._values[layer][:-1, :, :span]

    def some(self, layer: int, slots: Sequence[int], span: int) -> tuple[Tensor, Tensor]:
        """Copies of some slots' first `span` places, (slots, kv_heads, span, head_dim)."""
        keys, values = (
            torch.stack([_wide(stored)[slot, :, :span] for slot in slots]).view(stored.dtype)
            for stored in (self._keys[layer], self._values[layer])
        )
        return keys, values

    def copy(self, source: int, targets: Sequence[int], length: int) -> None:
        """Give other slots the first `length` places of a slot."""
        for stored in map(_wide, (*self._keys, *self._values)):
            for target in targets:
                stored[target, :, :length] = stored[source, :, :length]

    def clear(self, slot: int) -> None:
        """Make a slot safe for its next row after numbers that overflowed."""
        for stored in (*self._keys, *self._values):
            stored[slot].zero_()


def _wide(x: Tensor) -> Tensor:
    """The same memory as numbers of 8 bytes where they fit: a copy between strides takes as long for each of them."""
    return x.view(torch.int64) if x.shape[-1] * x.dtype.itemsize % 8 == 0 else x
