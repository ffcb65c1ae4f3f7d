"""The key-value cache of all running sequences, in pages that are allocated once."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from pipeline.engine.kernels.device import to_device
from pipeline.engine.kernels.layout import Moves, moves_to
from pipeline.engine.kernels.pages import NUM_SPARE, PAGE, Allocation, Ints
from pipeline.engine.kernels.stored import Stored, empty_cache
from pipeline.engine.network.partition import Part

KeyValues: TypeAlias = list[tuple[Stored, Stored]]  # of some tokens, in every layer
# the cache's keys and values, new ones, (tokens, kv_heads, head_dim) each, what goes where
Write: TypeAlias = Callable[[Stored, Stored, Tensor, Tensor, Moves], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheShape:
    """The dimensions of a cache; `pages` are those that sequences can have."""

    layers: int
    kv_heads: int
    head_dim: int
    pages: int
    int8: bool = False  # see Stored

    def num_bytes(self, dtype: torch.dtype) -> int:
        """Return the memory of these pages in all layers."""
        a_head = self.head_dim + torch.float32.itemsize if self.int8 else self.head_dim * dtype.itemsize
        return 2 * self.layers * self.kv_heads * self.pages * PAGE * a_head


def write_plainly(stored_keys: Stored, stored_values: Stored, keys: Tensor, values: Tensor, moves: Moves) -> None:
    """Write new keys and values to the cache, see Write."""
    for stored, new in ((stored_keys, keys), (stored_values, values)):
        stored.put(moves.targets, stored.pack(new[moves.sources].transpose(0, 1)))


class KVCache:
    """Keys and values of sequences, in the pages of each, one page after the other.

    `rotary` is the cosine and sine of the angles of every position, each (positions, head_dim). What belongs to a layer
    is on the layer's device, and so must be all that is passed for it.
    """

    def __init__(
        self, shape: CacheShape, rotary: tuple[Tensor, Tensor], parts: Sequence[Part], write: Write = write_plainly
    ) -> None:
        self._write = write
        self._rotary = [tuple(angles.to(part.device) for angles in rotary) for part in parts]
        dtype = rotary[0].dtype
        size = (shape.kv_heads, (NUM_SPARE + shape.pages) * PAGE, shape.head_dim)
        devices = [part.device for part in parts for _ in part.layers]
        self._keys = [empty_cache(size, dtype, device, int8=shape.int8) for device in devices]
        self._values = [empty_cache(size, dtype, device, int8=shape.int8) for device in devices]

    def angles(self, part: int, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Return cosine and sine of the angles at these positions, which are on the device of this part."""
        cos, sin = self._rotary[part]
        return cos[positions], sin[positions]

    def write(self, layer: int, moves: Moves, keys: Tensor, values: Tensor) -> None:
        """Write the keys and values that `moves` names, of (tokens, kv_heads, head_dim), to their entries."""
        self._write(self._keys[layer], self._values[layer], keys, values, moves)

    def read(self, allocation: Allocation, length: int) -> KeyValues:
        """Copy the keys and values of a sequence's first `length` positions."""
        there = self._to_devices(allocation.cache_indices(0, length))

        def copy(stored: Stored) -> Stored:
            return stored.take(there[stored.numbers.device])

        return [(copy(keys), copy(values)) for keys, values in zip(self._keys, self._values, strict=True)]

    def copy_to(self, allocations: Sequence[Allocation], key_values: KeyValues) -> None:
        """Write what `read` returned to the same positions of other sequences."""
        there = self._to_devices(moves_to(allocations, 0, key_values[0][0].numbers.shape[1]))
        for own, new in zip(zip(self._keys, self._values, strict=True), key_values, strict=True):
            for stored, copied in zip(own, new, strict=True):
                sources, targets = there[stored.numbers.device]
                stored.put(targets, copied.take(sources))

    def of(self, layer: int) -> tuple[Stored, Stored]:
        """Return the keys and values of all entries."""
        return self._keys[layer], self._values[layer]

    def clear(self, pages: Sequence[int]) -> None:
        """Zero pages that others have had: see `empty_cache`."""
        there = self._to_devices(np.array(pages, np.int64))
        for stored in (*self._keys, *self._values):
            stored.zero(there[stored.numbers.device])

    def _to_devices(self, numbers: Ints) -> dict[torch.device, Tensor]:
        """Copy numbers to every device that has a layer."""
        return {device: to_device(numbers, device) for device in {keys.numbers.device for keys in self._keys}}
