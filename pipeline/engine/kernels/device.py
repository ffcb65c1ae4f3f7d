"""Copies to the device and back that make neither side wait, streams, and the device's time."""

import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from itertools import cycle
from typing import Any

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


def event_on(device: torch.device) -> torch.cuda.Event | None:
    """Return an event behind all that was launched on a GPU so far; None for another device, where all is done."""
    return torch.cuda.current_stream(device).record_event() if device.type == "cuda" else None


@cache
def _copy_streams(source: torch.device, target: torch.device) -> tuple[torch.cuda.Stream, torch.cuda.Stream]:
    """Return the streams, one of each GPU, that copies from one to the other are launched on."""
    return torch.cuda.Stream(source), torch.cuda.Stream(target)


def hand_over(
    x: Tensor, device: torch.device, out: Tensor | None = None, ready: torch.cuda.Event | None = None
) -> Tensor:
    """Copy a tensor to another device, into `out` if that is given; one that is there already is returned.

    Between GPUs the copy waits for all that was launched before it on the device of `x`, or only for `ready`, and what
    comes after waits for the copy. Neither GPU waits for the rest of the other's work, as it would for a copy that is
    launched on the streams of that work.
    """
    if x.device == device:
        return x if out is None or out is x else out.copy_(x)
    if x.device.type != "cuda" or device.type != "cuda":
        return x.to(device) if out is None else out.copy_(x)
    before, behind = torch.cuda.current_stream(x.device), torch.cuda.current_stream(device)
    sending, taking = _copy_streams(x.device, device)
    sending.wait_event(ready or before.record_event())
    with torch.cuda.stream(sending), torch.cuda.stream(taking):
        copy = x.to(device, non_blocking=True) if out is None else out.copy_(x, non_blocking=True)
    behind.wait_stream(sending)
    x.record_stream(sending)
    copy.record_stream(behind)
    return copy


class HostCopy:
    """A copy of tensors of one device on its way to the host: `wait` for it as late as possible."""

    def __init__(self, *tensors: Tensor) -> None:
        self._tensors = [tensor.to("cpu", non_blocking=True, copy=True) for tensor in tensors]
        self._event = event_on(tensors[0].device)

    def wait(self) -> list[list[Any]]:
        """Wait until the copy is there; return the numbers of each tensor, a list a row."""
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
    """Seconds that devices spent, by name. On GPUs they are known once the work is done: `seconds` asks for those."""

    def __init__(self, devices: Iterable[torch.device]) -> None:
        self._num_devices = len(set(devices))
        self._spent: dict[str, float] = defaultdict(float)
        self._lock = threading.Lock()  # one thread measures, another asks
        self._running: deque[tuple[str, torch.cuda.Event, torch.cuda.Event]] = deque()

    @contextmanager
    def __call__(self, name: str, device: torch.device) -> Iterator[None]:
        """Measure what the block launches on a device."""
        if device.type != "cuda":
            start = time.perf_counter()
            yield
            self._spent[name] += time.perf_counter() - start
            return
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record(torch.cuda.current_stream(device))
        yield
        end.record(torch.cuda.current_stream(device))
        self._running.append((name, begin, end))
        self._collect()

    def seconds(self) -> dict[str, float]:
        """Return the seconds that are known so far, by name: the mean of the devices."""
        self._collect()
        return {name: spent / self._num_devices for name, spent in self._spent.items()}

    def _collect(self) -> None:
        with self._lock:
            while self._running and self._running[0][2].query():
                name, begin, end = self._running.popleft()
                self._spent[name] += begin.elapsed_time(end) / 1000
