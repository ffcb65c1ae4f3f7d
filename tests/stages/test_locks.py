"""ModeLock: nobody draws in a way that another has asked for, and the way changes as seldom as can be."""

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

    def turn(self, sampling: Sampling) -> None:
        self.now = sampling
        self.changes += 1


def test_whoever_has_a_turn_draws_as_asked_whatever_others_want() -> None:
    dial = Dial()
    turns = ModeLock(GREEDY, dial.turn)

    def draw(number: int) -> bool:
        wanted = HOT if number % 3 == 0 else GREEDY
        with turns.take(wanted):
            before = dial.now
            time.sleep(0.001)
            return before == wanted == dial.now

    with ThreadPoolExecutor(3) as pool:
        assert all(pool.map(draw, range(60)))
    assert 0 < dial.changes <= 60


def test_those_who_want_the_same_work_at_the_same_time() -> None:
    turns, met = ModeLock(GREEDY, Dial().turn), threading.Barrier(3)

    def draw(_: int) -> None:
        with turns.take(GREEDY):
            met.wait(timeout=10)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(draw, range(3)))


def test_units_in_order_cost_one_change_a_kind() -> None:
    dial = Dial()
    turns = ModeLock(GREEDY, dial.turn)
    for sampling in [GREEDY] * 5 + [HOT] * 5:
        with turns.take(sampling):
            assert dial.now == sampling
    assert dial.changes == 1


def test_a_turn_that_ends_with_an_error_is_over() -> None:
    dial = Dial()
    turns = ModeLock(GREEDY, dial.turn)
    with pytest.raises(KeyError), turns.take(GREEDY):
        raise KeyError
    with turns.take(HOT):
        assert dial.now == HOT
