"""ModeLock: nobody samples in a way that another has asked for, and the way changes as seldom as can be."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from pipeline.stages.locks import ModeLock
from schemas.engine import Sampling

GREEDY, HOT = Sampling(), Sampling(temperature=1.0)


class Dial:
    """What is set now, and how often it was."""

    def __init__(self) -> None:
        self.now = GREEDY
        self.changes = 0

    def set(self, sampling: Sampling) -> None:
        self.now = sampling
        self.changes += 1


def test_whoever_holds_the_lock_samples_as_asked_whatever_others_want() -> None:
    dial = Dial()
    lock = ModeLock(GREEDY, dial.set)

    def sample(number: int) -> bool:
        wanted = HOT if number % 3 == 0 else GREEDY
        with lock.take(wanted):
            before = dial.now
            time.sleep(0.001)
            return before == wanted == dial.now

    with ThreadPoolExecutor(3) as pool:
        assert all(pool.map(sample, range(60)))
    assert 0 < dial.changes <= 60


def test_those_who_want_the_same_work_at_the_same_time() -> None:
    lock, met = ModeLock(GREEDY, Dial().set), threading.Barrier(3)

    def sample(_: int) -> int:
        with lock.take(GREEDY):
            return met.wait(timeout=10)  # the number of each among those who are inside together

    with ThreadPoolExecutor(3) as pool:
        assert sorted(pool.map(sample, range(3))) == [0, 1, 2]


def test_units_in_order_cost_one_change_a_kind() -> None:
    dial = Dial()
    lock = ModeLock(GREEDY, dial.set)
    for sampling in [GREEDY] * 5 + [HOT] * 5:
        with lock.take(sampling):
            assert dial.now == sampling
    assert dial.changes == 1


def test_a_turn_that_ends_with_an_error_is_over() -> None:
    dial = Dial()
    lock = ModeLock(GREEDY, dial.set)
    with pytest.raises(KeyError), lock.take(GREEDY):
        raise KeyError
    with lock.take(HOT):
        assert dial.now == HOT
