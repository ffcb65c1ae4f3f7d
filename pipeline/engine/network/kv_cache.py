"""The keys and values of every prompt at work, in pages that are allocated once."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from pipeline.engine.kernels.device import to_device
from pipeline.engine.kernels.layout import Moves, moves_to
from pipeline.engine.kernels.pages import NUM_SPARE, PAGE, Seat
from pipeline.engine.network.partition import Part

Stored: TypeAlias = list[tuple[Tensor, Tensor]]  # keys and values of every layer, (tokens, kv_heads, head_dim) each
# the cache's keys and values, (kv_heads, places, head_dim), new ones, (tokens, kv_heads, head_dim), which go where
Write: TypeAlias = Callable[[Tensor, Tensor, Tensor, Tensor, Moves], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheShape:
    """Numbers a cache is made of; `pages` are those that rows can have."""

    layers: int
    kv_heads: int
    head_dim: int
    pages: int

    def num_bytes(self, dtype: torch.dtype) -> int:
        """Memory of these pages in all layers."""
        return 2 * self.layers * self.kv_heads * self.pages * PAGE * self.head_dim * dtype.itemsize


def write_plainly(stored_keys: Tensor, stored_values: Tensor, keys: Tensor, values: Tensor, moves: Moves) -> None:
    """Write new keys and values to their places, see Write."""
    for stored, new in ((stored_keys, keys), (stored_values, values)):
        stored[:, moves.targets] = new[moves.sources].transpose(0, 1)


class Cache:
    """A row's keys and values are in its pages, one behind the other.

    `rotary` is the cosine and sine of the angles of every position, each (capacity, head_dim). What belongs to a layer
    is on the layer's device, and so is all that comes in for it.
    """

    def __init__(
        self, shape: CacheShape, rotary: tuple[Tensor, Tensor], parts: Sequence[Part], write: Write = write_plainly
    ) -> None:
        self._write = write
        self._rotary = [tuple(angles.to(part.device) for angles in rotary) for part in parts]
        dtype = rotary[0].dtype
        size = (shape.kv_heads, (NUM_SPARE + shape.pages) * PAGE, shape.head_dim)
        devices = [part.device for part in parts for _ in part.layers]
        # Zeros, not whatever was there: masked places are multiplied by 0, which a NaN survives.
        self._keys = [torch.zeros(size, dtype=dtype, device=device) for device in devices]
        self._values = [torch.zeros(size, dtype=dtype, device=device) for device in devices]

    def angles(self, part: int, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and sine of the angles at the positions, on the device of a part of the layers."""
        cos, sin = self._rotary[part]
        return cos[positions], sin[positions]

    def fill(self, layer: int, moves: Moves, keys: Tensor, values: Tensor) -> None:
        """Write what is moved of (tokens, kv_heads, head_dim) to its places."""
        self._write(self._keys[layer], self._values[layer], keys, values, moves)

    def copy(self, seat: Seat, length: int) -> Stored:
        """What a row's first positions hold in every layer."""
        own = torch.from_numpy(seat.places(0, length))
        there = {device: to_device(own, device) for device in self._devices}

        def held(one: Tensor) -> Tensor:
            return one[:, there[one.device]].transpose(0, 1)

        return [(held(keys), held(values)) for keys, values in zip(self._keys, self._values, strict=True)]

    def paste(self, stored: Stored, seats: Sequence[Seat]) -> None:
        """Write what `copy` gave to the same positions of other rows."""
        sources, targets = torch.from_numpy(moves_to(seats, 0, len(stored[0][0])))
        there = {
            device: Moves(sources=to_device(sources, device), targets=to_device(targets, device))
            for device in self._devices
        }
        for layer, (keys, values) in enumerate(stored):
            self.fill(layer, there[keys.device], keys, values)

    def of(self, layer: int) -> tuple[Tensor, Tensor]:
        """Keys and values of all places, (kv_heads, places, head_dim)."""
        return self._keys[layer], self._values[layer]

    def clear(self, seat: Seat) -> None:
        """Make a row's pages safe for other rows after numbers that overflowed."""
        for stored in (*self._keys, *self._values):
            for page in seat.pages:
                stored[:, page * PAGE : (page + 1) * PAGE].zero_()

    @property
    def _devices(self) -> set[torch.device]:
        return {keys.device for keys in self._keys}
