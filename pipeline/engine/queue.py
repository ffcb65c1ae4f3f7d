"""Groups that wait: first for the vision tower, then for a place in a prefill."""

import sys
from collections import deque
from collections.abc import Iterable, Sequence

from pipeline.engine.sequence import PrefillGroup, draft_of


class Waiting:
    """Groups in the order they came. A prefill has `num_places` places whatever is in it, and a group as many as
    follow from its own tokens: what else waits decides only when a group runs, never how.

    A group larger than a prefill has one of its own size to itself.
    """

    def __init__(
        self, *, num_places: int, step: int, tiles_per_call: int, most_rows: int, most_pages: int = sys.maxsize
    ) -> None:
        self.num_places, self.tiles_per_call = num_places, tiles_per_call
        self._step, self._most_rows, self._most_pages = step, most_rows, most_pages
        self._unseen = deque[PrefillGroup]()
        self._ready = deque[PrefillGroup]()

    def __len__(self) -> int:
        return len(self._unseen) + len(self._ready)

    @property
    def has_first_tries(self) -> bool:
        """Whether any row waits that has not been answered once."""
        return any(not draft_of(group.rows[0]).is_second for queue in (self._unseen, self._ready) for group in queue)

    def add(self, groups: Iterable[PrefillGroup]) -> None:
        """Put groups at the end."""
        for group in groups:
            (self._unseen if group.pictures.num_tiles else self._ready).append(group)

    def next_to_see(self, prefills: int, *, short: bool) -> list[PrefillGroup]:
        """The groups whose images make the tower's next call; none while so many prefills' worth is at hand, or while
        more may come to fill the call and it may not be short."""
        if not self._unseen or sum(map(self._size, self._ready)) >= prefills * self.num_places:
            return []
        chosen: dict[int, PrefillGroup] = {}
        room, left_out = self.tiles_per_call, False
        for group in self._unseen:
            if id(group.pictures) in chosen:
                continue
            num_tiles = group.pictures.num_tiles
            if num_tiles <= room or not chosen:
                chosen[id(group.pictures)] = group
                room -= num_tiles
            left_out |= id(group.pictures) not in chosen
        return list(chosen.values()) if short or left_out or room <= 0 else []

    def sort(self) -> None:
        """Note whose images have been seen."""
        self._ready += (group for group in self._unseen if not group.pictures.num_tiles)
        self._unseen = deque(group for group in self._unseen if group.pictures.num_tiles)

    def take(self, free: int, free_pages: int = sys.maxsize, *, short: bool) -> list[PrefillGroup] | None:
        """The groups of the next prefill: the oldest, and those that fill it up best. None while it is not full and
        may not be short, or while the free slots and pages do not hold it: what is full is waited for, so that nothing
        younger overtakes the oldest for ever."""
        if not self._ready:
            return None
        chosen = self._fitting(self._most_rows, self._most_pages)
        full = len(chosen) < len(self._ready) or sum(map(self._size, chosen)) >= self.num_places
        if short and not full:
            chosen = self._fitting(free, free_pages)
        num_rows, num_pages = (sum(needs) for needs in zip(*map(_needs, chosen), strict=True))
        if not (full or short) or num_rows > free or num_pages > free_pages:
            return None
        taken = set(map(id, chosen))
        self._ready = deque(group for group in self._ready if id(group) not in taken)
        return chosen

    def shrink(self, groups: Sequence[PrefillGroup]) -> bool:
        """Make all prefills half as large after one that did not fit the memory, and put its groups back to the
        front. False where it was one group and no larger than that: there is nothing to make smaller."""
        if len(groups) == 1 and self._size(groups[0]) >= self.num_places:
            return False
        self.num_places //= 2
        self._ready.extendleft(reversed(groups))
        return True

    def drop_unwanted(self) -> None:
        """Forget the groups that nobody waits for any more."""
        self._unseen, self._ready = (
            deque(group for group in queue if group.wanted) for queue in (self._unseen, self._ready)
        )

    def _size(self, group: PrefillGroup) -> int:
        return group.num_places(self._step)

    def _fitting(self, most_rows: int, most_pages: int) -> list[PrefillGroup]:
        """The oldest, whatever it needs, and those beside it that fill a prefill best within these bounds."""
        oldest, *others = self._ready
        room = (self.num_places - self._size(oldest)) // self._step
        found = [others[i] for i in best_sum([self._size(group) // self._step for group in others], room)]
        chosen, num_rows, num_pages = [oldest], *_needs(oldest)
        for group in found:
            more_rows, more_pages = _needs(group)
            num_rows, num_pages = num_rows + more_rows, num_pages + more_pages
            if num_rows > most_rows or num_pages > most_pages:
                break
            chosen.append(group)
        return chosen


def _needs(group: PrefillGroup) -> tuple[int, int]:
    """Slots and pages."""
    return len(group.rows), group.num_pages


def best_sum(sizes: Sequence[int], room: int) -> list[int]:
    """Which sizes come closest to the room together without exceeding it: their indices, rather early than late ones.

    The bits of a number stand for the sums that the sizes so far can have.
    """
    if room <= 0:
        return []
    sums = [1]
    for size in sizes:
        sums.append(sums[-1] | (sums[-1] << size) & ((2 << room) - 1))
    left, found = sums[-1].bit_length() - 1, []
    for i in reversed(range(len(sizes))):
        if not sums[i] >> left & 1:
            found.append(i)
            left -= sizes[i]
    return found[::-1]
