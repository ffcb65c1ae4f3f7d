"""The keys and values of every prompt at work: one slot each, allocated once."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from pipeline.engine.device import to_device
from pipeline.engine.places import Blocks, Segment
from pipeline.engine.spread import Part

Stored: TypeAlias = list[tuple[Tensor, Tensor]]  # keys and values of every layer, (kv_heads, tokens, head_dim) each


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
    """A row's keys and values start at place 0 of its slot.

    `rotary` is the cosine and sine of the angles of every place, each (capacity, head_dim). What belongs to a layer is
    on the layer's device, and so is all that comes in for it.
    """

    def __init__(self, shape: CacheShape, rotary: tuple[Tensor, Tensor], parts: Sequence[Part]) -> None:
        self.shape = shape
        self._rotary = [tuple(angles.to(part.device) for angles in rotary) for part in parts]
        dtype = rotary[0].dtype
        size = (shape.slots, shape.kv_heads, shape.capacity, shape.head_dim)
        devices = [part.device for part in parts for _ in part.layers]
        # Zeros, not whatever was there: masked places are multiplied by 0, which a NaN survives.
        self._keys = [torch.zeros(size, dtype=dtype, device=device) for device in devices]
        self._values = [torch.zeros(size, dtype=dtype, device=device) for device in devices]

    def angles(self, part: int, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and sine of the angles at the positions, on the device of a part of the layers."""
        cos, sin = self._rotary[part]
        return cos[positions], sin[positions]

    def fill(self, layer: int, segments: Iterable[Segment], keys: Tensor, values: Tensor) -> None:
        """Write what segments have of (places, kv_heads, head_dim) to their slots."""
        for stored, new in ((_wide(self._keys[layer]), _wide(keys)), (_wide(self._values[layer]), _wide(values))):
            for segment in segments:
                own = new[segment.first : segment.first + len(segment.token_ids)].transpose(0, 1)
                for slot in segment.slots:
                    stored[slot, :, segment.start : segment.end] = own

    def copy(self, slot: int, length: int) -> Stored:
        """What the first places of a slot hold in every layer."""
        layers = zip(self._keys, self._values, strict=True)
        return [(keys[slot, :, :length].clone(), values[slot, :, :length].clone()) for keys, values in layers]

    def paste(self, stored: Stored, slots: Sequence[int]) -> None:
        """Write what `copy` gave to the same places of other slots."""
        own = torch.tensor(slots)
        there = {device: to_device(own, device) for device in {keys.device for keys in self._keys}}
        for layer, (keys, values) in enumerate(stored):
            for whole, part in ((self._keys[layer], keys), (self._values[layer], values)):
                _wide(whole)[there[whole.device], :, : part.shape[1]] = _wide(part)

    def put(self, layer: int, blocks: Blocks, keys: Tensor, values: Tensor) -> None:
        """Write keys and values of one token a slot, each (slots, kv_heads, head_dim)."""
        for stored, new in ((self._keys[layer], keys), (self._values[layer], values)):
            stored[blocks.slots, :, blocks.positions] = new

    def of(self, layer: int) -> tuple[Tensor, Tensor]:
        """Keys and values of all slots, (slots, kv_heads, capacity, head_dim)."""
        return self._keys[layer], self._values[layer]

    def clear(self, slot: int) -> None:
        """Make a slot safe for its next row after numbers that overflowed."""
        for stored in (*self._keys, *self._values):
            stored[slot].zero_()


def _wide(x: Tensor) -> Tensor:
    """The same memory as numbers of 8 bytes where they fit: a copy between strides takes as long for each of them."""
    return x.view(torch.int64) if x.shape[-1] * x.dtype.itemsize % 8 == 0 else x
