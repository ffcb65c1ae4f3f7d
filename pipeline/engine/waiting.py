"""The queue of groups that wait, first for the vision tower, then for a prefill."""

import sys
from collections import deque
from collections.abc import Iterable

from pipeline.engine.prefill_group import PrefillGroup


class WaitingQueue:
    """Groups in the order they came, those of a caller who came earlier before those of a later one.

    Callers whose samples come at the same time are so answered one after the other, the first as early as can be.

    A prefill has `num_padded_tokens` whatever is in it, and a group as many as follow from its own tokens: what else
    waits decides only when a group runs, never how.

    A group larger than a prefill has one of its own size to itself.
    """

    def __init__(
        self,
        *,
        num_padded_tokens: int,
        bucket: int,
        tiles_per_call: int,
        max_sequences: int,
        max_pages: int = sys.maxsize,
    ) -> None:
        self.num_padded_tokens, self.tiles_per_call = num_padded_tokens, tiles_per_call
        self._bucket, self._max_sequences, self._max_pages = bucket, max_sequences, max_pages
        self._to_encode = deque[PrefillGroup]()
        self._ready = deque[PrefillGroup]()

    def __len__(self) -> int:
        return len(self._to_encode) + len(self._ready)

    @property
    def has_first_attempts(self) -> bool:
        """Tell whether anything but retries waits."""
        queues = (self._to_encode, self._ready)
        return any(not group.sequences[0].completion.is_retry for queue in queues for group in queue)

    def add(self, groups: Iterable[PrefillGroup]) -> None:
        """Put groups behind all others of their callers, and of those that came earlier."""
        for group in groups:
            (self._to_encode if group.images.num_tiles else self._ready).append(group)
        self._to_encode, self._ready = _by_caller(self._to_encode), _by_caller(self._ready)

    def next_to_encode(self, num_prefills: int, *, short: bool) -> list[PrefillGroup]:
        """Choose the groups whose images make the tower's next call, one group for images that several share.

        None while the groups that are ready fill so many prefills, or while the call is not full and may not be short.
        """
        if not self._to_encode or sum(map(self._size, self._ready)) >= num_prefills * self.num_padded_tokens:
            return []
        chosen: dict[int, PrefillGroup] = {}
        room, left_out = self.tiles_per_call, False
        for group in self._to_encode:
            if id(group.images) in chosen:
                continue
            num_tiles = group.images.num_tiles
            if num_tiles <= room or not chosen:
                chosen[id(group.images)] = group
                room -= num_tiles
            left_out |= id(group.images) not in chosen
        return list(chosen.values()) if short or left_out or room <= 0 else []

    def move_encoded(self) -> None:
        """Move the groups whose images are encoded to those that are ready."""
        encoded = (group for group in self._to_encode if not group.images.num_tiles)
        self._ready = _by_caller([*self._ready, *encoded])
        self._to_encode = deque(group for group in self._to_encode if group.images.num_tiles)

    def take(self, free_slots: int, free_pages: int = sys.maxsize, *, short: bool) -> list[PrefillGroup] | None:
        """Take the groups of the next prefill: the oldest, and those that fill it up best.

        None while it is not full and may not be short, or while the free slots and pages do not hold it: a full prefill
        is waited for, so that nothing younger overtakes the oldest for ever.
        """
        if not self._ready:
            return None
        chosen = self._fitting(self._max_sequences, self._max_pages)
        full = len(chosen) < len(self._ready) or sum(map(self._size, chosen)) >= self.num_padded_tokens
        if short and not full:
            chosen = self._fitting(free_slots, free_pages)
        num_slots, num_pages = (sum(needs) for needs in zip(*map(_needs, chosen), strict=True))
        if not (full or short) or num_slots > free_slots or num_pages > free_pages:
            return None
        taken = set(map(id, chosen))
        self._ready = deque(group for group in self._ready if id(group) not in taken)
        return chosen

    def shrink(self, groups: list[PrefillGroup]) -> bool:
        """Make all prefills half as large after one that did not fit the memory, and put its groups back to the front.

        False where it was a single group that filled it: nothing could be left out.
        """
        if len(groups) == 1 and self._size(groups[0]) >= self.num_padded_tokens:
            return False
        self.num_padded_tokens //= 2
        self._ready.extendleft(reversed(groups))
        return True

    def drop_done(self) -> None:
        """Forget the groups whose sequences have all failed."""
        self._to_encode, self._ready = (
            deque(group for group in queue if group.is_waiting) for queue in (self._to_encode, self._ready)
        )

    def _size(self, group: PrefillGroup) -> int:
        return group.num_padded_tokens(self._bucket)

    def _fitting(self, max_sequences: int, max_pages: int) -> list[PrefillGroup]:
        """Choose the oldest, whatever it needs, and those beside it that fill a prefill best within these limits."""
        oldest, *others = self._ready
        room = (self.num_padded_tokens - self._size(oldest)) // self._bucket
        found = [others[i] for i in best_sum([self._size(group) // self._bucket for group in others], room)]
        chosen, num_sequences, num_pages = [oldest], *_needs(oldest)
        for group in found:
            more_sequences, more_pages = _needs(group)
            num_sequences, num_pages = num_sequences + more_sequences, num_pages + more_pages
            if num_sequences > max_sequences or num_pages > max_pages:
                break
            chosen.append(group)
        return chosen


def _by_caller(groups: Iterable[PrefillGroup]) -> deque[PrefillGroup]:
    """Sort groups by who waits for them; of one caller's they stay in their order."""
    return deque(sorted(groups, key=lambda group: group.caller))


def _needs(group: PrefillGroup) -> tuple[int, int]:
    """Count the slots and the pages that a group needs."""
    return len(group.sequences), group.num_pages


def best_sum(sizes: list[int], room: int) -> list[int]:
    """Return the indices of the sizes whose sum comes closest to the room without exceeding it, earlier ones first.

    Each bit of a number stands for a sum that the sizes so far can have.
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
