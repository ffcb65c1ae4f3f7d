"""Steps that the device's memory may not hold: how all of them are tried."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch

from pipeline.engine.statistics import Counters

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class OutOfMemory:
    """A step that the device's memory did not hold, with the message of its allocator."""

    message: str


def try_in_memory(step: Callable[[], T], counters: Counters) -> T | OutOfMemory:
    """Run a step once. Where memory runs out, count that and free what the allocator keeps back.

    What to try next, something smaller or the same again, is the caller's to decide.
    """
    try:
        return step()
    except torch.OutOfMemoryError as error:
        message = str(error)
    # Out of the handler: there the error's traceback holds the tensors of the attempt.
    torch.cuda.empty_cache()
    counters.num_out_of_memory += 1
    return OutOfMemory(message)
