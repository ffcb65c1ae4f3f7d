"""A step that the device's memory does not hold is counted, and says what the allocator said."""

import gc
import weakref

import pytest
import torch

from pipeline.engine.out_of_memory import OutOfMemory, try_in_memory
from pipeline.engine.statistics import Counters


class Tensors:
    """What a step holds while it runs."""


def test_a_step_that_fits_returns_what_it_returns_and_is_not_counted() -> None:
    counters = Counters()
    assert try_in_memory(lambda: 7, counters) == 7
    assert counters.num_out_of_memory == 0


def test_a_step_that_does_not_fit_is_counted_and_holds_nothing_any_more() -> None:
    counters, held = Counters(), []

    def step() -> int:
        tensors = Tensors()
        held.append(weakref.ref(tensors))
        raise torch.OutOfMemoryError("tried to allocate 9 GiB")

    gc.disable()  # by itself, not by the collector: memory is asked for again at once
    found = try_in_memory(step, counters)
    gc.enable()
    assert found == OutOfMemory("tried to allocate 9 GiB")
    assert held[0]() is None
    assert counters.num_out_of_memory == 1


def test_any_other_error_is_a_bug() -> None:
    def step() -> int:
        raise RuntimeError("an illegal memory access")

    with pytest.raises(RuntimeError, match="illegal"):
        try_in_memory(step, Counters())


def test_a_count_that_there_is_not_is_an_error() -> None:
    with pytest.raises(AttributeError):
        Counters().num_places = 1
