"""Which unit goes where, under a clock of the test's own: machines and workers that come, go and differ."""

import heapq
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import pytest

from pipeline.execution.dispatch import Dispatch, Prepared
from pipeline.execution.work_units import Task, UnitKey


def reads_nothing(*_: object) -> None:
    raise AssertionError("nothing is read here")


def tasks(num_units: int) -> Iterator[Task]:
    return (Task(key=UnitKey(0, unit), read=reads_nothing) for unit in range(num_units))


@dataclass(slots=True, kw_only=True)
class World:
    """Preparing actors and workers that take their time; `paces` are the workers' units a second."""

    num_units: int
    paces: list[float]
    room: int = 4
    prepare_s: float = 0.1
    machines: list[str] = field(default_factory=lambda: ["a", "b"])
    draw: random.Random = field(default_factory=lambda: random.Random(0))
    store_bytes: float = 1e12
    unit_bytes: int = 1
    never_share: float = 0.0  # of tasks that nothing comes of, though no machine is lost
    twice_share: float = 0.0  # of units that come a second time
    now: float = 0.0
    reported: Counter[UnitKey] = field(default_factory=Counter)
    given: Counter[UnitKey] = field(default_factory=Counter)
    last: dict[int, float] = field(default_factory=dict)  # when a worker's last unit came
    lengths: list[int] = field(default_factory=list)  # of tasks, in units
    most_ahead: int = 0
    dispatch: Dispatch = field(init=False)
    events: list[tuple[float, int, str, Any]] = field(default_factory=list)
    busy_until: dict[int, float] = field(default_factory=dict)
    stopped: set[int] = field(default_factory=set)  # workers that are there and do nothing
    not_noticed: set[str] = field(default_factory=set)  # machines that are gone
    numbers: "count[int]" = field(default_factory=count)

    def __post_init__(self) -> None:
        clock = lambda: self.now  # noqa: E731
        self.dispatch = Dispatch(tasks(self.num_units), self.num_units, store_bytes=self.store_bytes, clock=clock)
        for name in range(len(self.paces)):
            self.dispatch.add_worker(name, self.room)

    def at(self, moment: float, kind: str, what: object = None) -> None:
        heapq.heappush(self.events, (moment, next(self.numbers), kind, what))

    def step(self) -> bool:
        """Hand out what can be, and let the next thing happen; False where nothing will."""
        while handed := self.dispatch.next_tasks():
            self.lengths.append(len(handed))
            self.prepare([task.key for task in handed])
        while (pair := self.dispatch.next_pair()) is not None:
            name, prepared = pair
            self.given[prepared.key] += 1
            self.busy_until[name] = max(self.now, self.busy_until.get(name, 0.0)) + 1 / self.paces[name]
            self.at(self.busy_until[name], "report", pair)
        self.most_ahead = max(self.most_ahead, self.dispatch.num_ahead)
        flow = self.dispatch.flow()
        assert min(flow.preparing, flow.at_work) >= 0
        if not self.events:
            return False
        self.now, _, kind, what = heapq.heappop(self.events)
        getattr(self, f"on_{kind}")(what)
        return True

    def prepare(self, keys: list[UnitKey]) -> None:
        if self.draw.random() < self.never_share:
            return
        machine = self.draw.choice(self.machines)
        for number, key in enumerate(keys, start=1):
            self.at(self.now + number * self.prepare_s, "prepared", (key, machine))
            if self.draw.random() < self.twice_share:
                self.at(self.now + self.draw.uniform(0, 90), "prepared", (key, machine))

    def on_prepared(self, what: tuple[UnitKey, str]) -> None:
        key, machine = what
        if machine in self.machines or self.draw.random() < 0.2:  # that it was there is heard after it is gone
            self.dispatch.add_prepared(Prepared(key=key, machine=machine, num_bytes=self.unit_bytes))

    def on_report(self, pair: tuple[int, Prepared]) -> None:
        name, prepared = pair
        if name not in self.dispatch.workers or name in self.stopped:
            return
        gone = prepared.machine not in self.machines
        if gone and (end := self.draw.choice(["lost", "silent", "done"])) != "done":  # it had not been copied before
            if end == "lost":
                self.dispatch.add_lost(name, prepared)
        elif self.dispatch.add_report(name, prepared, self.prepare_s):
            self.reported[prepared.key] += 1
            self.last[name] = self.now

    def on_lose(self, machine: str) -> None:
        """A machine goes and another one comes; that it is gone is noticed at the next look."""
        self.machines = [one for one in self.machines if one != machine] + [f"{machine}'"]
        self.not_noticed.add(machine)
        self.at(self.now + self.draw.uniform(0, 5), "look")

    def on_look(self, _: object) -> None:
        self.dispatch.lose_machines(self.not_noticed)
        self.not_noticed = set()
        self.dispatch.repeat_late()

    def on_looks(self, _: object) -> None:
        self.on_look(None)
        self.at(self.now + 5, "looks")

    def on_die(self, name: int) -> None:
        self.dispatch.add_again(self.dispatch.remove_worker(name), innocent=self.draw.random() < 0.5)
        self.on_join(self.paces[name])

    def on_join(self, pace: float) -> None:
        self.paces.append(pace)
        self.dispatch.add_worker(len(self.paces) - 1, self.room)

    def on_stop(self, name: int) -> None:
        """A worker stays, and does nothing any more."""
        self.stopped.add(name)

    def run(self, until_s: float = 1e5) -> "World":
        while self.dispatch.num_left:
            assert self.step(), f"{self.dispatch.num_left} units are left, and nothing is under way"
            assert self.now < until_s, f"{self.dispatch.num_left} units are left after {until_s} s"
        return self


@pytest.mark.parametrize("seed", range(20))
def test_every_unit_is_reported_once_whatever_machines_and_workers_do(seed: int) -> None:
    draw = random.Random(seed)
    world = World(num_units=300, paces=[5.0, 3.0, 0.5], prepare_s=0.05, machines=["a", "b", "c"], draw=draw)
    for machine in "abc":
        world.at(draw.uniform(0, 40), "lose", machine)
    for name in (0, 1, 2):
        world.at(draw.uniform(0, 40), "die", name)
    assert set(world.run().reported.values()) == {1}
    assert len(world.reported) == 300


@pytest.mark.parametrize("seed", range(100))
def test_every_unit_is_reported_once_though_some_are_never_heard_of(seed: int) -> None:
    draw = random.Random(seed)
    shares = {"never_share": draw.choice([0, 0.02, 0.2]), "twice_share": draw.choice([0, 0.1, 0.5])}
    store_bytes = draw.choice([1e12, 3.0])  # room for all, or for one at a time
    world = World(
        num_units=100, paces=[5.0, 3.0, 0.5], machines=["a", "b"], draw=draw, store_bytes=store_bytes, **shares
    )
    world.at(0, "looks")
    for machine in draw.sample(["a", "b", "a'", "b'"], 3):
        world.at(draw.uniform(0, 40), "lose", machine)
    for name in draw.sample([0, 1, 2], 2):
        world.at(draw.uniform(0, 40), draw.choice(["die", "stop"]), name)
    world.at(draw.uniform(0, 60), "join", draw.uniform(0.5, 5))
    assert set(world.run(until_s=5000).reported.values()) == {1}
    assert len(world.reported) == 100


@pytest.mark.parametrize("slow", [0.3, 1.0, 3.0])
@pytest.mark.parametrize("num_units", [60, 300])
def test_the_fast_worker_is_never_left_idle_for_a_slow_one(slow: float, num_units: int) -> None:
    world = World(num_units=num_units, paces=[3.0, slow]).run()
    assert world.now <= num_units / (3 + slow) + 1 / slow + 1
    assert world.last[1] - world.last[0] <= 1 / slow


def test_a_worker_that_comes_late_has_its_share() -> None:
    world = World(num_units=200, paces=[2.0])
    while world.now < 20:
        world.step()
    world.paces.append(2.0)
    world.dispatch.add_worker(1, 4)
    assert world.run().now < 75  # alone it would have taken 100


def test_no_more_is_prepared_ahead_than_the_object_store_has_room_for() -> None:
    world = World(num_units=300, paces=[0.5], store_bytes=1e9, unit_bytes=10**8).run()
    assert world.most_ahead <= 8  # before anything is known of their size
    assert World(num_units=300, paces=[50.0], unit_bytes=10**8).run().most_ahead > 50


def test_fewer_are_prepared_ahead_once_machines_have_gone_with_their_memory() -> None:
    world = World(num_units=300, paces=[50.0], unit_bytes=10**8, store_bytes=1e12)
    while len(world.reported) < 50:
        world.step()
    assert world.dispatch.room_ahead > 50
    world.dispatch.store_bytes = 2e9
    assert world.dispatch.room_ahead == 6


def test_small_units_are_prepared_together_until_few_are_left() -> None:
    lengths = World(num_units=5000, paces=[50.0] * 4, prepare_s=0.01).run().lengths
    assert max(lengths) > 8
    assert lengths[-1] == 1
    assert sum(lengths) == 5000


def test_units_that_take_long_to_prepare_come_one_by_one() -> None:
    assert set(World(num_units=500, paces=[50.0] * 4, prepare_s=1.0).run().lengths) == {1}


def all_at_one_worker(num_units: int) -> tuple[Dispatch, list[Prepared]]:
    dispatch = Dispatch(tasks(num_units), num_units)
    dispatch.add_worker(0, num_units)
    for task in take_all(dispatch):
        dispatch.add_prepared(Prepared(key=task.key, machine="a"))
    return dispatch, [pair[1] for _ in range(num_units) if (pair := dispatch.next_pair()) is not None]


def take_all(dispatch: Dispatch) -> list[Task]:
    return [task for _ in range(20) for task in dispatch.next_tasks()]


@pytest.mark.parametrize("first", ["machine", "worker"])
def test_what_a_dead_worker_was_at_is_prepared_again_where_its_samples_are_gone_as_well(first: str) -> None:
    dispatch, at = all_at_one_worker(5)
    if first == "machine":
        assert set(dispatch.lose_machines({"a"})) == set(at)
        assert dispatch.remove_worker(0) == []
    else:
        dispatch.add_again(dispatch.remove_worker(0))
        assert dispatch.lose_machines({"a"}) == []
    dispatch.add_worker(1, 5)
    assert dispatch.next_pair() is None
    again = take_all(dispatch)
    assert len(again) == 5
    assert {(task.key, task.attempt) for task in again} == {(one.key, 1) for one in at}


def test_what_a_worker_waits_for_in_vain_takes_up_none_of_its_room() -> None:
    dispatch, at = all_at_one_worker(5)
    assert set(dispatch.lose_machines({"a"})) == set(at)  # Ray may never say what came of these
    assert dispatch.flow().at_work == 0
    again = take_all(dispatch)
    for task in again:
        dispatch.add_prepared(Prepared(key=task.key, machine="b"))
    given = [dispatch.next_pair() for _ in range(5)]
    assert [pair and pair[1].key for pair in given] == [task.key for task in again]
    assert {task.key for task in again} == {one.key for one in at}


def test_what_is_heard_late_of_a_machine_that_is_gone_has_nothing_prepared_once_more() -> None:
    dispatch, at = all_at_one_worker(5)
    for lost in dispatch.lose_machines({"a"}):
        dispatch.add_lost(0, lost)
    again = take_all(dispatch)
    assert len(again) == 5
    assert {task.key for task in again} == {one.key for one in at}
    assert dispatch.flow().at_work == 0


def test_what_a_worker_had_of_a_machine_that_is_gone_counts_when_it_comes_after_all() -> None:
    dispatch, at = all_at_one_worker(5)
    dispatch.lose_machines({"a"})
    assert [dispatch.add_report(0, one, 0.1) for one in at] == [True] * 5
    assert dispatch.num_left == 0
    assert take_all(dispatch) == []


def test_what_a_dead_worker_was_at_goes_first_and_is_told_from_what_was_given_before() -> None:
    world = World(num_units=50, paces=[1.0])
    while world.now < 5:
        world.step()
    at = world.dispatch.remove_worker(0)
    world.dispatch.add_again(at)
    world.dispatch.add_worker(1, 4)
    pair = world.dispatch.next_pair()
    assert pair is not None
    assert pair[1].key in {one.key for one in at}
    assert pair[1] not in at


def test_a_copy_that_is_ready_when_another_is_reported_is_given_to_nobody() -> None:
    dispatch, at = all_at_one_worker(5)
    dispatch.lose_machines({"a"})
    for task in take_all(dispatch):
        dispatch.add_prepared(Prepared(key=task.key, machine="b"))
    assert [dispatch.add_report(0, one, 0.1) for one in at[:4]] == [True] * 4  # it had them, though they are lost
    pair = dispatch.next_pair()
    assert pair is not None
    assert pair[1].key == at[4].key
    assert dispatch.next_pair() is None
    assert dispatch.num_ahead == 0


@pytest.mark.parametrize("innocent", [True, False])
@pytest.mark.parametrize("samples", ["there", "gone"])
def test_no_unit_is_accused_of_what_happened_to_its_machine(samples: str, innocent: bool) -> None:
    dispatch, at = all_at_one_worker(1)
    if samples == "gone":
        dispatch.lose_machines({"a"})
    dispatch.add_again(dispatch.remove_worker(0), innocent=innocent)
    dispatch.add_worker(1, 1)
    for task in take_all(dispatch):
        dispatch.add_prepared(Prepared(key=task.key, machine="b"))
    pair = dispatch.next_pair()
    assert pair is not None
    assert pair[1].key == at[0].key
    assert pair[1].attempt == (1 if innocent or samples == "gone" else 0)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_unit_that_does_not_come_is_prepared_again_once_a_worker_waits_for_it() -> None:
    clock = Clock()
    dispatch = Dispatch(tasks(2), 2, clock=clock)
    first, second = take_all(dispatch)
    dispatch.add_worker(0, 1)
    clock.now = 1000
    assert dispatch.repeat_late() == 0  # nothing has come: what prepares may be loading
    dispatch.add_prepared(Prepared(key=first.key))
    clock.now = 4001  # four times as long as the longest so far
    assert dispatch.repeat_late() == 0  # something is ready
    assert dispatch.next_pair() is not None
    assert dispatch.repeat_late() == 0  # nobody waits
    dispatch.add_worker(1, 1)
    assert dispatch.repeat_late() == 1
    assert [task.key for task in take_all(dispatch)] == [second.key]
    clock.now = 4001 + 2 * 4000
    assert dispatch.repeat_late() == 0
    clock.now += 1  # each is waited for twice as long as the one before
    assert dispatch.repeat_late() == 1


def test_what_a_worker_does_not_come_back_from_goes_to_another_and_counts_once() -> None:
    clock = Clock()
    dispatch = Dispatch(tasks(2), 2, clock=clock)
    dispatch.add_worker(0, 2)
    for task in take_all(dispatch):
        dispatch.add_prepared(Prepared(key=task.key))
    quick, stuck = dispatch.next_pair(), dispatch.next_pair()
    assert quick is not None
    assert stuck is not None
    clock.now = 1
    assert dispatch.add_report(*quick, 0.1)
    clock.now = 181
    assert dispatch.repeat_late() == 0  # it has room, and nobody else has
    dispatch.add_worker(1, 1)
    assert dispatch.repeat_late() == 1
    (again,) = take_all(dispatch)
    dispatch.add_prepared(Prepared(key=again.key))
    other = dispatch.next_pair()
    assert other is not None
    assert (other[0], other[1].key) == (1, stuck[1].key)
    assert [dispatch.add_report(*other, 0.1), dispatch.add_report(*stuck, 0.1)] == [True, False]
    assert dispatch.num_left == 0
