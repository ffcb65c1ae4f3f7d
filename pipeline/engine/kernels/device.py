"""Copies to the device and back that make neither side wait, streams, and the device's time."""

import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from itertools import cycle

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


def to_device(numbers: Tensor | npt.NDArray[np.generic], device: torch.device) -> Tensor:
    """Copy numbers to the device; from pinned memory, so that the host can go on while a GPU does earlier work."""
    tensor = numbers if isinstance(numbers, Tensor) else torch.from_numpy(numbers)
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


@cache
def side_stream(device: torch.device) -> torch.cuda.Stream:
    """Return a GPU's second stream, beside the one that all work is on.

    Every caller gets the same one: a library keeps memory of its own for every stream it has worked on.
    """
    return torch.cuda.Stream(device)


@contextmanager
def on_side_stream(device: torch.device) -> Iterator[None]:
    """Launch work on the side stream, after what the current stream was given; the current stream waits for it."""
    stream, current = side_stream(device), torch.cuda.current_stream(device)
    stream.wait_stream(current)
    with torch.cuda.stream(stream):
        yield
    current.wait_stream(stream)


class HostCopy:
    """A copy of tensors on its way to the host: `wait` for it as late as possible."""

    def __init__(self, *tensors: Tensor) -> None:
        self._event = torch.cuda.Event() if tensors[0].is_cuda else None
        self._tensors = [tensor.to("cpu", non_blocking=True, copy=True) for tensor in tensors]
        if self._event is not None:
            self._event.record()

    def wait(self) -> list[list[float]]:
        """Wait until the copy is there; return the numbers of each tensor."""
        if self._event is not None:
            self._event.synchronize()
        return [tensor.tolist() for tensor in self._tensors]


class Streams:
    """Two streams of a GPU, so that the beginning of one step fills what the end of another leaves idle.

    On another device steps run one after the other.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._beside = torch.cuda.Stream(device) if device.type == "cuda" else None

    def run(self, steps: Iterable[Callable[[], None]]) -> None:
        """Run steps that are independent of each other; what comes after waits for all of them."""
        if self._beside is None:
            for step in steps:
                step()
            return
        first = torch.cuda.current_stream(self._device)
        self._beside.wait_stream(first)
        for step, stream in zip(steps, cycle((first, self._beside)), strict=False):
            with torch.cuda.stream(stream):
                step()
        first.wait_stream(self._beside)


class Stopwatch:
    """Seconds the device spent, by name. On a GPU they are known once its work is done: `seconds` asks for those."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._spent: dict[str, float] = defaultdict(float)
        self._lock = threading.Lock()  # one thread measures, another asks
        self._running: deque[tuple[str, torch.cuda.Event, torch.cuda.Event]] = deque()

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        if not self._cuda:
            start = time.perf_counter()
            yield
            self._spent[name] += time.perf_counter() - start
            return
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        yield
        end.record()
        self._running.append((name, begin, end))
        self._collect()

    def seconds(self) -> dict[str, float]:
        """Return the seconds that are known so far, by name."""
        self._collect()
        return dict(self._spent)

    def _collect(self) -> None:
        with self._lock:
            while self._running and self._running[0][2].query():
                name, begin, end = self._running.popleft()
                self._spent[name] += begin.elapsed_time(end) / 1000
