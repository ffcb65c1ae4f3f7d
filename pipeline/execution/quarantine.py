"""Quarantine: a row that kills the process which works on it, or holds it up for ever, costs only itself.

Before a unit is worked on, a marker says so; it goes when the unit is through. A unit whose marker is there already has
lost a worker, as all have that were at work with it: it is done again alone in its actor. If that kills as well, it is
done row by row, each row marked first. A row that kills a worker that way is answered by its failure, the others by
themselves. A row that takes longer than it may is killed with its process by the watchdog, which leaves its marker:
once is enough. Markers of another driver are ignored: when a driver is killed, its workers die of that and of nothing
else.
"""

import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal, TypeAlias

import pyarrow as pa

from pipeline.execution.watchdog import Watchdog
from pipeline.run_folder.markers import Marker, Markers, Note
from pipeline.stages.locks import RWLock
from schemas.errors import Failure, Stage

Work: TypeAlias = Literal["preprocess", "generate"]
Step: TypeAlias = Callable[[pa.Table], pa.Table]
Read: TypeAlias = Callable[[Failure | None], pa.Table]
MAX_DEATHS = 1  # of a row that is tried alone, after two of its unit
MAX_LOADS = 3
_TELL_S = 1.0
_READING = -1  # instead of a row
_KILLED_BY_READING = Failure(
    stage="read",
    type="WorkerDied",
    message=f"reading these rows killed their worker process in {MAX_DEATHS + 2} tries (a crash in native code, or no "
    "memory left): look at their file, then retry them",
)


class RowWatch:
    """Follows the rows of one unit: says to the watchdog what the unit's marker is to be if a row takes too long, and
    hands on the tracebacks of what nobody foresaw."""

    def __init__(self, watchdog: Watchdog, seconds: float, keep: Callable[[Failure, str], None]) -> None:
        self._watchdog, self._seconds, self._keep = watchdog, seconds, keep
        self._name = uuid.uuid4().hex
        self._first = 0
        self._row: int | None = None
        self._until = 0.0
        self._slow: Callable[[int, Stage], Note] | None = None

    def follow(self, slow: Callable[[int, Stage], Note], first: int = 0) -> None:
        """Count rows from `first`, and leave behind what `slow` makes of one that takes too long."""
        self._slow, self._first = slow, first

    def begin(self, row: int, stage: Stage) -> None:
        """Start the time of this row, which runs from where it started first."""
        if not self._seconds or self._slow is None:
            return
        if row != self._row:
            self._row, self._until = row, time.monotonic() + self._seconds
        note = self._slow(self._first + row, stage)
        self._watchdog.expect(self._name, self._until, note)

    def end(self) -> None:
        """Stop the time of the row."""
        if self._row is not None:
            self._row = None
            self._watchdog.done(self._name)

    def keep(self, failure: Failure, trace: str) -> None:
        """Hand on a traceback."""
        self._keep(failure, trace)


class StepLimit:
    """Watches an engine's steps: one that takes too long ends the process, and leaves a note of that."""

    def __init__(self, watchdog: Watchdog, seconds: float, note: Note) -> None:
        self._watchdog, self._seconds, self._note = watchdog, seconds, note
        self._told = float("-inf")

    def begin(self) -> None:
        """Start the time of a step. The watchdog is told once a second, as steps take milliseconds."""
        if (now := time.monotonic()) - self._told >= _TELL_S:
            self._watchdog.expect("step", now + _TELL_S + self._seconds, self._note)
            self._told = now

    def rest(self) -> None:
        """Stop the time: there is nothing to do."""
        self._watchdog.done("step")
        self._told = float("-inf")


class Guard:
    """Does the units of one actor, so that neither a row that kills nor its neighbours are tried for ever."""

    def __init__(
        self,
        work: Work,
        markers: Markers,
        fail_rows: Callable[[pa.Table, Failure], pa.Table],
        gate: "RWLock | None" = None,
        watch: RowWatch | None = None,
    ) -> None:
        self._work = work
        self._markers = markers
        self._fail_rows = fail_rows
        self._gate = gate or RWLock()  # one for all guards of a process
        self._watch = watch  # what `step` is told to say of its rows

    def __call__(self, unit: int, read: Read, step: Step) -> pa.Table:
        """Return `step` of the table that `read` gives: whole, after a death alone, after another one row by row.

        Where reading itself kills, `read` is given the failure that all rows are to have.
        """
        name = f"unit-{unit:08d}-{self._work}"
        left = self._markers.find(name)
        with self._at_work(name, alone=left is not None):
            if left is not None and not left.accuses_nobody:
                return self._one_by_one(name, left.after_death(), read, step)
            self._markers.put(name, alone=left is not None)
            table = read(None)
            self._follow(name, None)
            return step(table)

    @contextmanager
    def _at_work(self, name: str, *, alone: bool) -> Iterator[None]:
        """Hold the gate until nothing accuses the unit any more: the next one through may kill at once."""
        with self._gate.alone() if alone else self._gate.shared():
            try:
                yield
            finally:
                if self._watch is not None:
                    self._watch.end()
            self._markers.remove(name)

    def _follow(self, name: str, known: Marker | None, first: int = 0) -> None:
        if self._watch is not None:
            self._watch.follow(self._markers.slow(name, known), first)

    def _one_by_one(self, name: str, known: Marker, read: Read, step: Step) -> pa.Table:
        if known.deaths.get(str(_READING), 0) >= MAX_DEATHS:
            return step(read(_KILLED_BY_READING))
        self._markers.put(name, _READING, known)
        table = read(None)
        results = []
        for row in range(table.num_rows):
            one = table.slice(row, 1)
            failure = self._failure_of(str(row), known)
            if failure is not None:
                results.append(self._fail_rows(one, failure))
                continue
            self._markers.put(name, row, known)
            self._follow(name, known, row)
            results.append(step(one))
        return pa.concat_tables(results).combine_chunks()

    def _failure_of(self, row: str, known: Marker) -> Failure | None:
        if row in known.slow:
            return _too_slow(known.slow[row])
        return _killer(self._work) if known.deaths.get(row, 0) >= MAX_DEATHS else None


@contextmanager
def bounded_loading(work: Work, actor: str, markers: Markers, gate: RWLock) -> Iterator[None]:
    """Let an actor load, but not again and again where that kills its process: Ray would restart it for ever.

    No unit is at work meanwhile: one that kills would be taken for the loading, or the loading for it.
    """
    name = f"loading-{actor}-{work}"
    with gate.alone():
        left = markers.find(name)
        known = left.after_death() if left else None
        if known is not None and sum(known.deaths.values()) >= MAX_LOADS:
            raise RuntimeError(
                f"a {work} actor died {MAX_LOADS} times while it was loading: its process was killed, as when memory "
                "runs out or native code crashes; Ray's session logs have its last words"
            )
        markers.put(name, 0, known)
        yield
        markers.remove(name)


def _killer(work: Work) -> Failure:
    stage: Literal["decode", "generate"] = "decode" if work == "preprocess" else "generate"
    return Failure(
        stage=stage,
        type="WorkerDied",
        message=f"this row killed its worker process in {MAX_DEATHS + 2} tries, the last of them alone (a crash in "
        "native code, no memory left, or a step of the engine beyond --step-seconds): look at its image, then retry it",
    )


def _too_slow(stage: Stage) -> Failure:
    message = "preparing this row took longer than --row-seconds: look at it, or give rows more time, then retry it"
    return Failure(stage=stage, type="TimedOut", message=message)
