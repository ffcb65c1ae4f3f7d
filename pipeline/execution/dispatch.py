"""Dispatch: which unit is prepared next, and which generating worker has it. Bookkeeping alone, without Ray.

Nothing is bound early. A unit waits, prepared, until a worker has room for it; what a worker was at when it died goes
to the next that has. Towards the end a slow worker is given no unit that the others would be through with before it.
How many units are prepared ahead follows from what the workers hold and how fast they are, and from room in memory.
"""

import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

from pipeline.execution.flow import Flow
from pipeline.execution.work_units import Task, UnitKey

_FEWEST_AHEAD = 8
_AHEAD_S = 10.0  # of the workers' pace, that is prepared ahead
_STORE_SHARE = 0.3  # of the object store, that prepared units may fill
_TASK_S = 0.5  # that one task of preparation takes, where units are small
_MOST_A_TASK = 16
_SHORTEST_S = 0.05
_MEAN_OF = 32  # units, of a mean that moves along
_PACE_S = 30.0  # over which the pace of all is taken
_LATE_S = 180.0  # that a unit is waited for at least before another copy of it is made
_LATE = 4  # times the longest that any took


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Prepared:
    """Samples of a unit, somewhere in the cluster."""

    key: UnitKey
    block: Any = None  # their reference
    machine: str = ""  # that holds them
    num_bytes: int = 0
    attempt: int = 0  # as its task has it: which markers speak against the unit


@dataclass(slots=True, kw_only=True)
class Worker:
    """A generating worker, and the units that it is at."""

    room: int  # units that it works on at once
    at: set[Prepared] = field(default_factory=set)
    done: int = 0
    busy_s: float = 0.0  # before the units that it is at
    since: float = 0.0  # of these

    def pace(self, now: float) -> float:
        """Return its units a second while it has any; before the first is done, at most one in the time so far."""
        busy_s = self.busy_s + (now - self.since if self.at else 0.0)
        return max(1, self.done) / max(_SHORTEST_S, busy_s)

    def give(self, prepared: Prepared, now: float) -> None:
        """Note that it has one more unit."""
        if not self.at:
            self.since = now
        self.at.add(prepared)

    def take(self, prepared: Prepared, now: float, *, done: bool) -> None:
        """Note that a unit that it is at is done, or lost."""
        self.at.remove(prepared)
        self.done += done
        if not self.at:
            self.busy_s += now - self.since


class Dispatch:
    """Every unit from its task to its report: each is reported once, however often it has to be done.

    `first` units are prepared before any worker is ready.
    """

    def __init__(
        self,
        tasks: Iterator[Task],
        num_units: int,
        *,
        first: int = 0,
        store_bytes: float = float("inf"),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.num_left = num_units  # without a report
        self.store_bytes = store_bytes  # of the cluster as it is
        self._tasks, self._first, self._clock = tasks, first, clock
        self._num_new = num_units  # tasks that were never handed out
        self._open: dict[UnitKey, Task] = {}  # handed out, not reported
        self._again: dict[UnitKey, Task] = {}  # of these, those to be handed out again
        self._here = set[UnitKey]()  # and those that are ready, or at a worker
        self._since: dict[UnitKey, float] = {}  # when they were handed out, or given to a worker
        self._longest_s = {"prepare": 0.0, "answer": 0.0}
        self._ready = deque[Prepared]()
        self._lost_machines = set[str]()
        self.workers: dict[int, Worker] = {}
        self._num_at_work, self._room, self._num_again = 0, 0, 0
        self._bytes, self._num_prepared, self._seconds, self._num_reported = 0.0, 0, 0.0, 0
        self._reported, self._began = deque[float](), float("inf")
        self._paces, self._paces_until = dict[int, float](), 0.0

    @property
    def num_ahead(self) -> int:
        """Count the units that are handed out and at no worker yet."""
        return len(self._ready) + len(self._open) - len(self._here) - len(self._again)

    def flow(self) -> Flow:
        """Return where the units are now."""
        return Flow(
            left=self.num_left,
            preparing=self.num_ahead - len(self._ready),
            ready=len(self._ready),
            at_work=self._num_at_work,
            room=self._room,
            workers=len(self.workers),
            again=self._num_again,
        )

    @property
    def room_ahead(self) -> int:
        """Return how many units may be prepared, or be on their way there, and at no worker yet."""
        pace = self._pace()
        wanted = _AHEAD_S * pace if pace else max(self._first, self._room)
        fitting = _STORE_SHARE * self.store_bytes / max(1.0, self._bytes)
        return int(max(1, min(max(_FEWEST_AHEAD, wanted), fitting)))

    def next_tasks(self) -> list[Task]:
        """Return the tasks that one worker prepares next, together; none while enough are on their way."""
        room = self.room_ahead
        together = self._units_a_task(room)
        tasks = self._take(together) if room - self.num_ahead >= together else []
        now = self._clock()
        self._open.update((task.key, task) for task in tasks)
        self._since.update((task.key, now) for task in tasks)
        return tasks

    def add_prepared(self, prepared: Prepared) -> None:
        """Take in a unit that is ready for a worker, unless another copy of it is, or was."""
        key = prepared.key
        if key not in self._open or key in self._here:
            return
        if prepared.machine in self._lost_machines:  # it has gone meanwhile
            self._prepare_again([key])
            return
        self._num_prepared += 1
        self._bytes += (prepared.num_bytes - self._bytes) / min(_MEAN_OF, self._num_prepared)
        self._took("prepare", key)
        self._again.pop(key, None)
        self._here.add(key)
        self._ready.append(replace(prepared, attempt=self._open[key].attempt))

    def add_worker(self, name: int, room: int) -> int:
        """Take in a worker that is ready for so many units at once; return how many workers there are."""
        self.workers[name] = Worker(room=room)
        self._room += room
        self._paces_until = 0.0
        return len(self.workers)

    def remove_worker(self, name: int) -> list[Prepared]:
        """Forget a worker that is gone; return what it was at."""
        if (worker := self.workers.pop(name, None)) is None:
            return []
        self._room -= worker.room
        self._num_at_work -= len(worker.at)
        self._paces_until = 0.0
        return list(worker.at)

    def add_again(self, prepared: Sequence[Prepared], *, innocent: bool = False) -> None:
        """Take in what a worker that is gone was at: what is still there goes to others before anything else.

        Where it is innocent of that, as its machine is gone, this is a new attempt.
        """
        for one in prepared:
            if one.machine in self._lost_machines:
                self._prepare_again([one.key])
            elif (task := self._open.get(one.key)) is not None:
                self._num_again += 1
                self._again.pop(one.key, None)
                self._here.add(one.key)
                attempt = task.attempt + innocent
                self._open[one.key] = replace(task, attempt=attempt)
                self._ready.appendleft(
                    replace(one, attempt=attempt)
                )  # another, as of that one something may yet be heard

    def next_pair(self) -> tuple[int, Prepared] | None:
        """Return a worker and the unit that it has from now on; None where none should have one now."""
        free = [name for name, one in self.workers.items() if len(one.at) < one.room] if self._ready else []
        if not free:
            return None
        now = self._clock()
        paces = self._paces_of_workers(now)
        ends = {name: (len(self.workers[name].at) + 1) / paces[name] for name in free}
        best = min(free, key=ends.__getitem__)
        if ends[best] > self._last_end():
            return None
        prepared = self._ready.popleft()
        self.workers[best].give(prepared, now)
        self._since[prepared.key] = now
        self._began = min(self._began, now)
        self._num_at_work += 1
        return best, prepared

    def add_report(self, name: int, prepared: Prepared, seconds: float) -> bool:
        """Take in that a unit is written, after so many seconds of preparation; return whether that is news."""
        key, was_at = prepared.key, self._end(name, prepared, done=True)
        if (task := self._open.pop(key, None)) is None:
            return False
        if not was_at or task.attempt:  # another copy may be ready, which nobody needs now
            self._ready = deque(one for one in self._ready if one.key != key)
        self._took("answer", key)
        del self._since[key]
        self._again.pop(key, None)
        self._here.discard(key)
        self.num_left -= 1
        self._num_reported += 1
        self._seconds += (seconds - self._seconds) / min(_MEAN_OF, self._num_reported)
        now = self._clock()
        self._reported.append(now)
        while self._reported[0] < now - _PACE_S:
            self._reported.popleft()
        return True

    def add_lost(self, name: int, prepared: Prepared) -> None:
        """Take in that the samples that a worker was to have are gone; where their machine is, that is known."""
        if self._end(name, prepared, done=False):
            self._prepare_again([prepared.key])

    def lose_machines(self, machines: Collection[str]) -> list[Prepared]:
        """Take in that machines are gone. Return what workers were at, or waited for in vain, of the samples there.

        Nobody may hear of these any more, so they take up no worker's room. They are prepared again, and so is all that
        was on its way to be ready, as nobody knows where it was; of two copies one counts.
        """
        self._lost_machines.update(machines)
        at_work = list[Prepared]()
        for name, worker in self.workers.items():
            there = [one for one in worker.at if one.machine in machines]
            at_work += [one for one in there if self._end(name, one, done=False)]
        gone = [one for one in self._ready if one.machine in machines]
        self._ready = deque(one for one in self._ready if one.machine not in machines)
        on_the_way = [key for key in self._open if key not in self._here and key not in self._again]
        self._prepare_again([*(one.key for one in (*gone, *at_work)), *on_the_way])
        return at_work

    def prepare_again(self) -> None:
        """Take in that nothing that was handed out and is not ready will come."""
        self.lose_machines(())

    def repeat_late(self) -> int:
        """Have another copy made of units that do not come though others did, where a worker has nothing to do; return
        how many. A worker that is slow is not given its own units once more.

        A process may be stopped, or wait for a disk that is gone, and nobody hears of that. Every copy is waited for
        twice as long as the one before; of all that come one counts.
        """
        if self._ready or all(worker.at for worker in self.workers.values()):
            return 0
        now = self._clock()
        late = [key for key in self._since if key not in self._again and now - self._since[key] > self._wait_s(key)]
        self._prepare_again(late)
        return len(late)

    def _wait_s(self, key: UnitKey) -> float:
        longest_s = self._longest_s["answer" if key in self._here else "prepare"]
        return max(_LATE_S, _LATE * longest_s) * 2.0 ** self._open[key].attempt if longest_s else float("inf")

    def _took(self, what: str, key: UnitKey) -> None:
        self._longest_s[what] = max(self._longest_s[what], self._clock() - self._since[key])

    def _prepare_again(self, keys: Sequence[UnitKey]) -> None:
        for key in keys:
            self._here.discard(key)
            if (task := self._open.get(key)) is not None:
                self._open[key] = self._again[key] = replace(task, attempt=task.attempt + 1)
                self._num_again += 1

    def _end(self, name: int, prepared: Prepared, *, done: bool) -> bool:
        """Take in that a worker is at a unit no more; return whether it was."""
        worker = self.workers.get(name)
        if worker is None or prepared not in worker.at:
            return False
        worker.take(prepared, self._clock(), done=done)
        self._num_at_work -= 1
        return True

    def _units_a_task(self, room: int) -> int:
        """Return how many small units are prepared by one task, so that tasks are no burden; one near the end."""
        long_enough = int(_TASK_S / self._seconds) if self._seconds else 1
        return max(1, min(long_enough, _MOST_A_TASK, room // 8, self._num_new // 64))

    def _take(self, most: int) -> list[Task]:
        for key in self._again:
            return [self._again.pop(key)]
        tasks = list(islice(self._tasks, most))
        self._num_new -= len(tasks)
        return tasks

    def _pace(self) -> float:
        """Return the units a second that all workers report together; 0 where nobody knows."""
        if not self._reported:
            return 0.0
        return len(self._reported) / max(1.0, min(_PACE_S, self._reported[-1] - self._began))

    def _paces_of_workers(self, now: float) -> dict[int, float]:
        if now >= self._paces_until:
            self._paces = {name: worker.pace(now) for name, worker in self.workers.items()}
            self._paces_until = now + _SHORTEST_S
        return self._paces

    def _last_end(self) -> float:
        """Return the seconds after which all units could be through, one of the fastest worker's to spare."""
        return self.num_left / sum(self._paces.values()) + 1 / max(self._paces.values())
