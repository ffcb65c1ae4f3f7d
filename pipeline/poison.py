"""Poison: a row that kills the process which works on it costs only itself.

Before a unit is worked on, a marker says so; it goes when the unit is through. A unit whose marker is there already has
lost a worker: it is done row by row and alone in its actor, each row marked first. A row that kills a worker twice that
way is answered by its failure, the others by themselves. Markers of another driver are ignored: when a driver is
killed, its workers die of that and of nothing else.
"""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Literal, TypeAlias

import pyarrow as pa

from pipeline import storage
from schemas.errors import Failure

Work: TypeAlias = Literal["preprocess", "generate"]
Step: TypeAlias = Callable[[pa.Table], pa.Table]
Read: TypeAlias = Callable[[Failure | None], pa.Table]
MAX_DEATHS = 2  # of a row that is tried alone
MAX_LOADS = 3
_READING = -1  # in place of a row
_KILLED_BY_READING = Failure(
    stage="read",
    type="WorkerDied",
    message=f"reading these rows killed their worker process in {MAX_DEATHS + 1} tries (a crash in native code, or no "
    "memory left): look at their file, then retry them",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Marker:
    """What was being done when the marker was written, and the deaths known before. `row` None is a whole unit."""

    driver: str
    row: int | None = None
    deaths: dict[str, int] = field(default_factory=dict)  # by row

    def after_death(self) -> dict[int, int]:
        """Deaths by row, the one that left this marker included."""
        deaths = {int(row): count for row, count in self.deaths.items()}
        if self.row is not None:
            deaths[self.row] = deaths.get(self.row, 0) + 1
        return deaths


@dataclass(frozen=True, slots=True, kw_only=True)
class Markers:
    """The markers of a run; `driver` names the one that is running."""

    folder: str
    driver: str

    def find(self, name: str) -> Marker | None:
        """The marker of that name that this driver's workers have left."""
        try:
            marker = Marker(**json.loads(storage.read_bytes(self._path(name))))
        except (FileNotFoundError, ValueError, TypeError):  # none, or torn by the kill of its storage
            return None
        return marker if marker.driver == self.driver else None

    def put(self, name: str, row: int | None = None, deaths: dict[int, int] | None = None) -> None:
        """Say what is about to be done."""
        known = {str(one): count for one, count in (deaths or {}).items()}
        marker = Marker(driver=self.driver, row=row, deaths=known)
        storage.write_atomic(self._path(name), json.dumps(asdict(marker)).encode())

    def remove(self, name: str) -> None:
        """Say that it went well."""
        storage.delete(self._path(name))

    def _path(self, name: str) -> str:
        return storage.join(self.folder, "markers", f"{name}.json")


class Guard:
    """Does the units of one actor, so that neither a poison row nor its neighbours are tried for ever."""

    def __init__(
        self,
        work: Work,
        markers: Markers,
        give_up: Callable[[pa.Table, Failure], pa.Table],
        gate: "Gate | None" = None,
    ) -> None:
        self._work = work
        self._markers = markers
        self._give_up = give_up
        self._gate = gate or Gate()  # one for all guards of a process

    def __call__(self, unit: int, read: Read, step: Step) -> pa.Table:
        """`step` of the table that `read` gives, whole or, after a death, row by row.

        Where reading itself kills, `read` is given the failure that all rows are to have.
        """
        name = f"unit-{unit:08d}-{self._work}"
        left = self._markers.find(name)
        if left is None:
            with self._gate.shared():
                self._markers.put(name)
                result = step(read(None))
        else:
            with self._gate.alone():
                result = self._one_by_one(name, left.after_death(), read, step)
        self._markers.remove(name)
        return result

    def _one_by_one(self, name: str, deaths: dict[int, int], read: Read, step: Step) -> pa.Table:
        if deaths.get(_READING, 0) >= MAX_DEATHS:
            return step(read(_KILLED_BY_READING))
        self._markers.put(name, _READING, deaths)
        table = read(None)
        results = []
        for row in range(table.num_rows):
            one = table.slice(row, 1)
            if deaths.get(row, 0) >= MAX_DEATHS:
                results.append(self._give_up(one, _killer(self._work)))
                continue
            self._markers.put(name, row, deaths)
            results.append(step(one))
        return pa.concat_tables(results).combine_chunks()


@contextmanager
def bounded_loading(work: Work, actor: str, markers: Markers) -> Iterator[None]:
    """Let an actor load, but not again and again where that kills its process: Ray would restart it for ever."""
    name = f"loading-{actor}-{work}"
    left = markers.find(name)
    deaths = left.after_death() if left else {}
    if sum(deaths.values()) >= MAX_LOADS:
        raise RuntimeError(
            f"a {work} actor died {MAX_LOADS} times while it was loading: its process was killed, as when memory runs "
            "out or native code crashes; Ray's session logs have its last words"
        )
    markers.put(name, 0, deaths)
    yield
    markers.remove(name)


def _killer(work: Work) -> Failure:
    stage: Literal["decode", "generate"] = "decode" if work == "preprocess" else "generate"
    tries = MAX_DEATHS + 1
    return Failure(
        stage=stage,
        type="WorkerDied",
        message=f"this row killed its worker process in {tries} tries, {MAX_DEATHS} of them alone (a crash in native "
        "code, or no memory left): look at its image, then retry it",
    )


class Gate:
    """Many at once, or one alone; who wants to be alone is let in before those that come after."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside = 0
        self._alone = False
        self._waiting = 0

    @contextmanager
    def shared(self) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self._alone and not self._waiting)
            self._inside += 1
        try:
            yield
        finally:
            with self._changed:
                self._inside -= 1
                self._changed.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        with self._changed:
            self._waiting += 1
            self._changed.wait_for(lambda: not self._alone and not self._inside)
            self._waiting -= 1
            self._alone = True
        try:
            yield
        finally:
            with self._changed:
                self._alone = False
                self._changed.notify_all()
