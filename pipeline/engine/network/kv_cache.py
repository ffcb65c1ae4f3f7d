"""The key-value cache of all running sequences, in pages that are allocated once."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from pipeline.engine.kernels.device import to_device
from pipeline.engine.kernels.layout import Moves, moves_to
from pipeline.engine.kernels.pages import NUM_SPARE, PAGE, Allocation
from pipeline.engine.network.partition import Part

KeyValues: TypeAlias = list[tuple[Tensor, Tensor]]  # of every layer, (tokens, kv_heads, head_dim) each
# the cache's keys and values, (kv_heads, entries, head_dim), new ones, (tokens, kv_heads, head_dim), what goes where
Write: TypeAlias = Callable[[Tensor, Tensor, Tensor, Tensor, Moves], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheShape:
    """The dimensions of a cache; `pages` are those that sequences can have."""

    layers: int
    kv_heads: int
    head_dim: int
    pages: int

    def num_bytes(self, dtype: torch.dtype) -> int:
        """Return the memory of these pages in all layers."""
        return 2 * self.layers * self.kv_heads * self.pages * PAGE * self.head_dim * dtype.itemsize


def write_plainly(stored_keys: Tensor, stored_values: Tensor, keys: Tensor, values: Tensor, moves: Moves) -> None:
    """Write new keys and values to the cache, see Write."""
    for stored, new in ((stored_keys, keys), (stored_values, values)):
        stored[:, moves.targets] = new[moves.sources].transpose(0, 1)


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
        # Zeros, not whatever was there: masked entries are multiplied by 0, which a NaN survives.
        self._keys = [torch.zeros(size, dtype=dtype, device=device) for device in devices]
        self._values = [torch.zeros(size, dtype=dtype, device=device) for device in devices]

    def angles(self, part: int, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Return cosine and sine of the angles at these positions, which are on the device of this part."""
        cos, sin = self._rotary[part]
        return cos[positions], sin[positions]

    def write(self, layer: int, moves: Moves, keys: Tensor, values: Tensor) -> None:
        """Write the keys and values that `moves` names, of (tokens, kv_heads, head_dim), to their entries."""
        self._write(self._keys[layer], self._values[layer], keys, values, moves)

    def read(self, allocation: Allocation, length: int) -> KeyValues:
        """Copy the keys and values of a sequence's first `length` positions."""
        own = torch.from_numpy(allocation.cache_indices(0, length))
        there = {device: to_device(own, device) for device in self._devices}

        def copy(stored: Tensor) -> Tensor:
            return stored[:, there[stored.device]].transpose(0, 1)

        return [(copy(keys), copy(values)) for keys, values in zip(self._keys, self._values, strict=True)]

    def copy_to(self, allocations: Sequence[Allocation], key_values: KeyValues) -> None:
        """Write what `read` returned to the same positions of other sequences."""
        sources, targets = torch.from_numpy(moves_to(allocations, 0, len(key_values[0][0])))
        there = {
            device: Moves(sources=to_device(sources, device), targets=to_device(targets, device))
            for device in self._devices
        }
        for layer, (keys, values) in enumerate(key_values):
            self.write(layer, there[keys.device], keys, values)

    def of(self, layer: int) -> tuple[Tensor, Tensor]:
        """Return the keys and values of all entries, (kv_heads, entries, head_dim) each."""
        return self._keys[layer], self._values[layer]

    def clear(self, allocation: Allocation) -> None:
        """Zero a sequence's pages, after numbers that overflowed: see `__init__`."""
        for stored in (*self._keys, *self._values):
            for page in allocation.pages:
                stored[:, page * PAGE : (page + 1) * PAGE].zero_()

    @property
    def _devices(self) -> set[torch.device]:
        return {keys.device for keys in self._keys}
