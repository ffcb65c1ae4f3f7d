"""The pages of the key-value cache: a sequence takes all that it may need at its prefill, and frees them at its end."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

PAGE = 64  # tokens
# Two pages belong to no sequence. Behind its own pages a sequence's table names EMPTY, which nothing ever writes to:
# keys and values that attention masks are multiplied by 0, which a NaN survives. For the same reason a sequence's own
# are zeroed from the end of its prompt on, as it gets them. Idle slots write to IDLE.
EMPTY, IDLE = 0, 1
NUM_SPARE = 2

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Allocation:
    """A running sequence's slot, counted over all batches, and its pages in the order of its tokens."""

    slot: int
    pages: tuple[int, ...]

    def cache_indices(self, start: int, end: int) -> Ints:
        """Return where in the cache the sequence's positions from `start` to `end` are."""
        positions = np.arange(start, end)
        return np.array(self.pages, np.int64)[positions // PAGE] * PAGE + positions % PAGE

    def page_table(self, num_pages: int) -> Ints:
        """Return its pages, filled up to `num_pages` with EMPTY."""
        return np.array(self.pages + (EMPTY,) * (num_pages - len(self.pages)), np.int64)


class Allocator:
    """Keeps the free slots, by their batches, and pages. Any page will do for any sequence, so free ones are never too
    scattered; a sequence joins the batch that has the most free slots."""

    def __init__(self, *, num_slots: int, num_pages: int, num_batches: int = 1) -> None:
        self._num_slots = num_slots
        self._slots = [list(range(i * num_slots, (i + 1) * num_slots)) for i in range(num_batches)]
        self._pages = list(range(NUM_SPARE, NUM_SPARE + num_pages))

    @property
    def num_free_slots(self) -> int:
        """Count the slots that no sequence holds."""
        return sum(map(len, self._slots))

    @property
    def num_free_pages(self) -> int:
        """Count the pages that no sequence holds."""
        return len(self._pages)

    def allocate(self, num_tokens: int) -> Allocation:
        """Give a sequence of at most `num_tokens` its slot, and all pages that it will ever need."""
        num = num_pages(num_tokens)
        slots = max(self._slots, key=len)
        assert slots, "a sequence is scheduled where a slot is free"
        assert num <= len(self._pages), "a sequence is scheduled where its pages are free"
        pages = tuple(self._pages.pop() for _ in range(num))
        return Allocation(slot=slots.pop(), pages=pages)

    def free(self, allocations: Iterable[Allocation]) -> None:
        """Take back what sequences held."""
        for allocation in allocations:
            self._slots[allocation.slot // self._num_slots].append(allocation.slot)
            self._pages.extend(allocation.pages)


def num_pages(num_tokens: int) -> int:
    """Return how many pages hold so many tokens."""
    return -(-num_tokens // PAGE)
