"""Families that wait for their prefill, in groups of a fixed shape."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

from pipeline.engine.rows import Family


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """One prefill: `num_rows` rows of `length` tokens, of which the families fill the first few."""

    length: int
    num_rows: int
    families: tuple[Family, ...]

    @property
    def num_slots(self) -> int:
        """Slots that its families' rows take."""
        return sum(len(family.rows) for family in self.families)


class Waiting:
    """Families by the bucket of their length. A bucket follows from a family's own length alone, and a group's shape
    from its bucket: what else waits decides only when a row runs, never how."""

    def __init__(self, *, bucket: int, prefill_tokens: int, num_slots: int) -> None:
        self._bucket = bucket
        self._prefill_tokens = prefill_tokens
        self._num_slots = num_slots
        self._order = count()
        self._queues: dict[int, deque[tuple[int, Family]]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._queues.values()))

    def behind(self, group: Group) -> Iterator[Family]:
        """The families that will run next at a group's length."""
        return (family for _, family in self._queues.get(group.length, ()))

    def add(self, family: Family) -> None:
        """Put a family at the end of its bucket."""
        length = round_up(family.num_shared, self._bucket)
        self._queues.setdefault(length, deque()).append((next(self._order), family))

    def take(self, free: int, short: bool) -> Group | None:
        """The next group that the free slots can hold: the oldest of the full ones, or of all where it may be short.

        A full group that does not fit yet is waited for, so that nothing younger overtakes it for ever.
        """
        groups = [self._group(length, self._num_slots) for length in self._queues]
        full = [group for group in groups if self._is_full(group)]
        if not full and not short:
            return None
        oldest = min(full or groups, key=lambda group: self._queues[group.length][0][0], default=None)
        if oldest is None or (full and oldest.num_slots > free):
            return None
        group = self._group(oldest.length, free)
        if not group.families:
            return None
        self._remove(group)
        return group

    def retry_smaller(self, group: Group) -> None:
        """Put a group back to the front that did not fit the memory, and make all groups of half its tokens."""
        self._prefill_tokens = group.length * max(1, group.num_rows // 2)
        first = -len(group.families)
        queue = self._queues.setdefault(group.length, deque())
        queue.extendleft((first + i, family) for i, family in reversed(list(enumerate(group.families))))

    def drop_unwanted(self) -> None:
        """Forget the families that nobody waits for any more."""
        for length, queue in list(self._queues.items()):
            if not all(family.wanted for _, family in queue):
                kept = deque(entry for entry in queue if entry[1].wanted)
                self._queues[length] = kept
                if not kept:
                    del self._queues[length]

    def _group(self, length: int, slots: int) -> Group:
        num_rows = max(1, self._prefill_tokens // length)
        families: list[Family] = []
        for _, family in self._queues[length]:
            slots -= len(family.rows)
            if slots < 0 or len(families) == num_rows:
                break
            families.append(family)
        return Group(length=length, num_rows=num_rows, families=tuple(families))

    def _is_full(self, group: Group) -> bool:
        """Whether no more rows will do: it has all that its shape takes, or all that the slots can hold."""
        return len(group.families) == group.num_rows or len(group.families) < len(self._queues[group.length])

    def _remove(self, group: Group) -> None:
        queue = self._queues[group.length]
        for _ in group.families:
            queue.popleft()
        if not queue:
            del self._queues[group.length]


def round_up(length: int, multiple: int) -> int:
    """The smallest multiple that is not below the length."""
    return -(-length // multiple) * multiple
