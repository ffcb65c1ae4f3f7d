"""Tile memory: where the tiles of a unit's rows are put as they are made, one after the other, as the unit's table has
them. Memory is used again for another unit once nobody looks at it any more."""

import math
import weakref

import numpy as np
import numpy.typing as npt

from schemas.sample import Tiles

_KEPT = 2  # memories that wait for a unit; more are given back


class TileMemory:
    """Memories of a worker's units. Fresh memory costs more time than what is put there: each page of it is a fault."""

    def __init__(self) -> None:
        self._free: list[npt.NDArray[np.uint8]] = []

    def buffer(self, num_bytes: int) -> "TileBuffer":
        """Return room for the tiles of a unit."""
        try:
            memory = self._free.pop()
        except IndexError:
            memory = np.empty(0, np.uint8)
        if len(memory) < num_bytes:
            memory = np.empty(num_bytes, np.uint8)  # untouched, it is no memory yet
        lent = np.frombuffer(memory.data, np.uint8)  # what looks at tiles holds this array, and no other
        weakref.finalize(lent, self._take_back, memory).atexit = False
        return TileBuffer(lent)

    def _take_back(self, memory: npt.NDArray[np.uint8]) -> None:
        if len(self._free) < _KEPT:
            self._free.append(memory)


class TileBuffer:
    """Room for the tiles of many samples."""

    def __init__(self, memory: npt.NDArray[np.uint8]) -> None:
        self._memory = memory
        self._used = 0
        self._lent: Tiles | None = None  # the room that was asked for last

    def room(self, shape: tuple[int, ...]) -> Tiles:
        """Return where the next tiles will lie, for them to be made there; it is theirs once they are put."""
        here = self._next(shape)
        if here is None:
            return np.empty(shape, np.uint8)
        self._lent = here
        return here

    def put(self, tiles: Tiles) -> Tiles:
        """Return the tiles as they lie here; themselves where there is no room for them."""
        here = tiles if tiles is self._lent else self._next(tiles.shape)
        if here is None:
            return tiles
        if here is not tiles:
            here[...] = tiles
        self._used += tiles.size
        return here

    def _next(self, shape: tuple[int, ...]) -> Tiles | None:
        end = self._used + math.prod(shape)
        return self._memory[self._used : end].reshape(shape) if end <= len(self._memory) else None
