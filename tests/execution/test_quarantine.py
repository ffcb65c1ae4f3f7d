"""A row that kills its worker costs only itself. Here a death is an exception that no marker is cleared after."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.execution.quarantine import MAX_LOADS, Guard, RowWatch, StepLimit, bounded_loading
from pipeline.execution.watchdog import Watchdog
from pipeline.run_folder.markers import Marker, Markers, Note
from pipeline.stages.locks import RWLock
from pipeline.storage import filesystem as fs
from schemas.errors import Failure

ROWS = pa.table({"id": ["a", "b", "poison", "c"]})


class Died(BaseException):
    """The end of a worker process."""


def upper(table: pa.Table) -> pa.Table:
    ids = table["id"].to_pylist()
    if "poison" in ids:
        raise Died
    return pa.table({"id": [id.upper() for id in ids]})


def fail_rows(table: pa.Table, failure: Failure) -> pa.Table:
    return pa.table({"id": [f"{id}: {failure.type}" for id in table["id"].to_pylist()]})


def try_until_done(attempt: Callable[[], pa.Table], at_most: int = 10) -> tuple[pa.Table, int]:
    """The result and the number of deaths before it, as Ray would restart the worker."""
    for deaths in range(at_most):
        with suppress(Died):
            return attempt(), deaths
    raise AssertionError("it was tried for ever")


def test_a_poison_row_is_given_up_after_three_deaths_and_its_neighbours_are_answered(tmp_path: Path) -> None:
    markers = Markers(folder=str(tmp_path), driver="d")
    result, deaths = try_until_done(
        lambda: Guard("preprocess", markers, fail_rows)(7, lambda _: ROWS, upper)  # a new process every time
    )
    assert result["id"].to_pylist() == ["A", "B", "poison: WorkerDied", "C"]
    assert deaths == 3
    assert not list((tmp_path / "markers").iterdir())


def test_a_unit_that_was_only_near_a_death_is_done_in_full(tmp_path: Path) -> None:
    markers = Markers(folder=str(tmp_path), driver="d")
    markers.put("unit-00000007-preprocess")
    good = ROWS.filter(pa.array([True, True, False, True]))
    result = Guard("preprocess", markers, fail_rows)(7, lambda _: good, upper)
    assert result["id"].to_pylist() == ["A", "B", "C"]


def test_the_deaths_of_another_drivers_workers_do_not_count(tmp_path: Path) -> None:
    before = Marker(driver="before", deaths={"0": 5}, slow={"1": "decode"})
    Markers(folder=str(tmp_path), driver="before").put("unit-00000007-preprocess", row=0, known=before)
    seen = []
    good = ROWS.slice(0, 2)

    def step(table: pa.Table) -> pa.Table:
        seen.append(table.num_rows)
        return table

    Guard("preprocess", Markers(folder=str(tmp_path), driver="now"), fail_rows)(7, lambda _: good, step)
    assert seen == [2]


def test_rows_whose_reading_kills_fail_without_being_read(tmp_path: Path) -> None:
    markers = Markers(folder=str(tmp_path), driver="d")

    def read(failure: Failure | None) -> pa.Table:
        if failure is None:
            raise Died
        return pa.table({"id": [f"{failure.stage} {failure.type}"]})

    result, deaths = try_until_done(lambda: Guard("preprocess", markers, fail_rows)(3, read, upper))
    assert (result["id"].to_pylist(), deaths) == (["READ WORKERDIED"], 3)


def test_an_exception_leaves_no_suspicion_of_a_death_in_a_later_run(tmp_path: Path) -> None:
    guard = Guard("preprocess", Markers(folder=str(tmp_path), driver="first"), fail_rows)
    with pytest.raises(Died):
        guard(7, lambda _: ROWS, upper)
    assert Markers(folder=str(tmp_path), driver="second").find("unit-00000007-preprocess") is None


def test_a_suspect_unit_is_alone_in_its_actor(tmp_path: Path) -> None:
    markers = Markers(folder=str(tmp_path), driver="d")
    markers.put("unit-00000001-preprocess")
    guard = Guard("preprocess", markers, fail_rows)
    inside: list[int] = []
    most = []

    def step(table: pa.Table) -> pa.Table:
        inside.append(1)
        most.append((len(inside), table.num_rows))
        threading.Event().wait(0.02)
        inside.pop()
        return table

    tables = {0: ROWS.slice(0, 2), 1: ROWS.slice(0, 1), 2: ROWS.slice(0, 2), 3: ROWS.slice(0, 2)}
    threads = [
        threading.Thread(target=guard, args=(unit, lambda _, t=table: t, step)) for unit, table in tables.items()
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [at_once for at_once, rows in most if rows == 1] == [1]


def test_units_that_were_near_a_death_are_done_whole_each_by_itself(tmp_path: Path) -> None:
    markers = Markers(folder=str(tmp_path), driver="d")
    for unit in range(12):  # all that a worker had in flight
        markers.put(f"unit-{unit:08d}-generate")
    seen = []

    def step(table: pa.Table) -> pa.Table:
        seen.append(table.num_rows)
        return upper(table)

    for unit in range(12):
        rows = ROWS if unit == 5 else ROWS.slice(0, 2)
        attempt = partial(Guard("generate", markers, fail_rows), unit, lambda _, rows=rows: rows, step)
        result, deaths = try_until_done(attempt)
        assert (result["id"].to_pylist()[:2], deaths) == (["A", "B"], 2 if unit == 5 else 0)
    assert seen == [2] * 5 + [4] + [1] * 3 + [1] * 3 + [2] * 6


class Gate(RWLock):
    """Sees what lies there at the moment in which the next unit may begin, and may kill."""

    def __init__(self, folder: Path, watchdog: "Watching") -> None:
        super().__init__()
        self.left: list[list[str]] = []
        self._folder, self._watchdog = folder, watchdog

    @contextmanager
    def alone(self) -> Iterator[None]:
        with super().alone():
            yield
            self.left.append([*(path.name for path in self._folder.iterdir()), *self._watchdog.expected])


@pytest.mark.parametrize("known", [Marker(driver="d"), Marker(driver="d", alone=True), Marker(driver="d", row=1)])
def test_a_unit_that_is_through_is_accused_of_nothing_that_the_next_one_does(tmp_path: Path, known: Marker) -> None:
    markers = Markers(folder=str(tmp_path), driver="d")
    markers.put("unit-00000007-generate", known.row, known, alone=known.alone)
    gate = Gate(tmp_path / "markers", watchdog := Watching())
    watch = RowWatch(watchdog, 60, lambda *_: None)

    def step(table: pa.Table) -> pa.Table:
        watch.begin(0, "decode")
        return upper(table)

    good = ROWS.slice(0, 2)
    Guard("generate", markers, fail_rows, gate, watch)(7, lambda _: good, step)
    assert gate.left == [[]]


def test_no_unit_is_at_work_while_its_actor_loads(tmp_path: Path) -> None:
    markers, gate = Markers(folder=str(tmp_path), driver="d"), RWLock()
    guard, done = Guard("preprocess", markers, fail_rows, gate), list[str]()
    beside = threading.Thread(target=guard, args=(7, lambda _: done.append("read") or ROWS.slice(0, 1), upper))
    with bounded_loading("preprocess", "actor", markers, gate):
        beside.start()
        beside.join(0.05)  # long enough for a unit that does not wait
        done.append("loaded")
    beside.join()
    assert done == ["loaded", "read"]


class Watching(Watchdog):
    """Keeps the names of what is expected."""

    def __init__(self) -> None:
        self.expected: set[str] = set()

    def expect(self, name: str, until: float, note: Note) -> None:
        self.expected.add(name)

    def done(self, name: str) -> None:
        self.expected.discard(name)


class HastyWatchdog(Watchdog):
    """Has no patience with row `poison`: leaves its note and kills at once."""

    def expect(self, name: str, until: float, note: Note) -> None:
        if list(json.loads(note.text)["slow"])[-1] == "2":
            fs.write_atomic(note.url, note.text.encode())
            raise Died


def slow(tmp_path: Path, known: Marker | None = None) -> tuple[pa.Table, int]:
    """Rows of which one takes too long, done as Ray would restart the worker."""
    markers = Markers(folder=str(tmp_path), driver="d")
    if known is not None:
        markers.put("unit-00000007-preprocess", known=known)

    def attempt() -> pa.Table:
        watch = RowWatch(HastyWatchdog(), 60, lambda *_: None)

        def step(table: pa.Table) -> pa.Table:
            for row in range(table.num_rows):
                watch.begin(row, "decode")
            return pa.table({"id": [id.upper() for id in table["id"].to_pylist()]})

        return Guard("preprocess", markers, fail_rows, watch=watch)(7, lambda _: ROWS, step)

    return try_until_done(attempt)


def test_a_row_that_takes_too_long_is_given_up_after_one_death(tmp_path: Path) -> None:
    result, deaths = slow(tmp_path)
    assert (result["id"].to_pylist(), deaths) == (["A", "B", "poison: TimedOut", "C"], 1)
    assert not list((tmp_path / "markers").iterdir())


def test_what_was_known_of_other_rows_is_not_forgotten_where_one_takes_too_long(tmp_path: Path) -> None:
    result, deaths = slow(tmp_path, Marker(driver="d", slow={"1": "fetch"}, deaths={"0": 2}))
    assert (result["id"].to_pylist(), deaths) == (["a: WorkerDied", "b: TimedOut", "poison: TimedOut", "C"], 1)


def test_a_failure_says_where_the_time_went(tmp_path: Path) -> None:
    markers = Markers(folder=str(tmp_path), driver="d")
    markers.put("unit-00000007-preprocess", known=Marker(driver="d", slow={"0": "prompt"}))
    given_up: list[Failure] = []
    guard = Guard("preprocess", markers, lambda table, failure: given_up.append(failure) or table)
    guard(7, lambda _: ROWS.slice(0, 1), upper)
    assert [(failure.stage, failure.type) for failure in given_up] == [("prompt", "TimedOut")]


def test_loading_is_given_up_after_some_deaths_of_the_same_actor(tmp_path: Path) -> None:
    markers = Markers(folder=str(tmp_path), driver="d")

    def load() -> None:
        with bounded_loading("generate", "actor-1", markers, RWLock()):
            raise Died

    for _ in range(MAX_LOADS):
        with pytest.raises(Died):
            load()
    with pytest.raises(RuntimeError, match="a generate actor died 3 times while it was loading"):
        load()
    with bounded_loading("generate", "actor-2", markers, RWLock()):
        assert markers.find("loading-actor-2-generate") is not None
    assert markers.find("loading-actor-2-generate") is None


class Expected(Watchdog):
    """Keeps what it is told instead of watching."""

    def __init__(self) -> None:
        self.told: list[tuple[str, float]] = []
        self.num_rests = 0

    def expect(self, name: str, until: float, note: Note) -> None:
        assert note.url == "left.txt"
        self.told.append((name, until))

    def done(self, name: str) -> None:
        self.num_rests += 1


def test_of_many_short_steps_the_watchdog_hears_once_a_second_and_after_a_rest_at_once() -> None:
    watchdog = Expected()
    limit = StepLimit(watchdog, 1000.0, Note(url="left.txt", text=""))
    began = time.monotonic()
    for _ in range(100):
        limit.begin()
    assert len(watchdog.told) <= 1 + (time.monotonic() - began)
    (name, until) = watchdog.told[0]
    assert began + 1000 <= until <= time.monotonic() + 1001
    limit.rest()
    limit.begin()
    assert watchdog.num_rests == 1
    assert watchdog.told[-1][0] == name
    assert watchdog.told[-1][1] >= until
    assert len(watchdog.told) >= 2
