"""The cache's places in pages of one size: a row takes as many as it may need when it is prefilled, and gives them back
at its end."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

PAGE = 64  # places
# Two pages are no row's. Behind its own, a row's table names one that nothing is ever written to: places that attention
# masks are multiplied by 0, which a NaN survives. Slots at rest write to the other.
EMPTY, IDLE = 0, 1
NUM_SPARE = 2

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Seat:
    """Where a row is at work: its slot, and the pages of its keys and values in the order of its tokens."""

    slot: int
    pages: tuple[int, ...]

    def places(self, start: int, end: int) -> Ints:
        """Return where in the cache the row's positions from `start` to `end` are."""
        positions = np.arange(start, end)
        return np.array(self.pages, np.int64)[positions // PAGE] * PAGE + positions % PAGE

    def table(self, num_pages: int) -> Ints:
        """Return its pages, filled up to so many."""
        return np.array(self.pages + (EMPTY,) * (num_pages - len(self.pages)), np.int64)


class Seats:
    """The slots and pages that no row has. Any page will do for any row, so that none is ever too far from others."""

    def __init__(self, *, num_slots: int, num_pages: int) -> None:
        self._slots = list(range(num_slots))
        self._pages = list(range(NUM_SPARE, NUM_SPARE + num_pages))

    @property
    def num_slots(self) -> int:
        """Rows that slots are free for."""
        return len(self._slots)

    @property
    def num_pages(self) -> int:
        """Pages that are free."""
        return len(self._pages)

    def take(self, num_tokens: int) -> Seat:
        """Give a row of at most so many tokens its slot, and all pages that it will ever need."""
        num = num_pages(num_tokens)
        assert self._slots, "a row is let in where a slot is free"
        assert num <= len(self._pages), "a row is let in where its pages are free"
        pages = tuple(self._pages.pop() for _ in range(num))
        return Seat(slot=self._slots.pop(), pages=pages)

    def take_back(self, seats: Iterable[Seat]) -> None:
        """Let others have what these rows had."""
        for seat in seats:
            self._slots.append(seat.slot)
            self._pages.extend(seat.pages)


def num_pages(num_tokens: int) -> int:
    """Return how many pages hold so many tokens."""
    return -(-num_tokens // PAGE)
