"""Ahead: images are fetched by many threads before they are used, in order, within a bound of bytes and of time."""

import itertools
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from schemas.errors import Failure, RowError
from schemas.request import ImageRef

T = TypeVar("T")

Room = Callable[[int], None]  # waits until this fetch may hold so many bytes, then holds them
Fetch = Callable[[ImageRef, Room], T | Failure]  # what an image is, or why there is none
MOST_BYTES = 256 * 2**20  # fetched and not yet used, of an actor


class Budget:
    """Bytes that many may hold together. Whoever came first may hold its own on top of them: nobody waits for ever."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._changed = threading.Condition()
        self._held = OrderedDict[int, int]()  # by number, in the order in which they came
        self._numbers = itertools.count()

    def enter(self) -> int:
        """Return the number of another one, who holds nothing yet."""
        with self._changed:
            number = next(self._numbers)
            self._held[number] = 0
            return number

    def hold(self, number: int, num_bytes: int) -> None:
        """Hold so many bytes instead of those held so far, once there is room for them; nothing after `leave`."""
        with self._changed:
            self._changed.wait_for(lambda: self._may_hold(number, num_bytes))
            if number in self._held:
                self._held[number] = num_bytes
                self._changed.notify_all()

    def leave(self, number: int) -> None:
        """Let go of everything."""
        with self._changed:
            self._held.pop(number, None)
            self._changed.notify_all()

    def _may_hold(self, number: int, num_bytes: int) -> bool:
        if number not in self._held or num_bytes <= self._held[number] or number == next(iter(self._held)):
            return True
        return sum(self._held.values()) - self._held[number] + num_bytes <= self._most


@dataclass(slots=True, eq=False)
class Job(Generic[T]):
    """One image to fetch, and what came of it."""

    image: ImageRef
    fetch: Fetch[T]
    number: int  # of those who share the budget
    done: threading.Event = field(default_factory=threading.Event)
    began: float | None = None  # seconds of time.monotonic
    result: T | Failure | None = None
    dropped: bool = False
    abandoned: bool = False  # by its thread's successor: this one hangs


@dataclass(slots=True, eq=False)
class Here(Generic[T]):
    """An image whose bytes the row brings along: no thread and no budget is needed for it."""

    image: ImageRef
    fetch: Fetch[T]


class Ahead(Generic[T]):
    """Fetches the images of units in the order in which the units come, and hands them out in that order."""

    def __init__(
        self, size: Callable[[T], int], *, num_threads: int, seconds: float | None, most_bytes: int = MOST_BYTES
    ) -> None:
        self._size, self._seconds = size, seconds
        self._budget = Budget(most_bytes)
        self._most_threads, self._num_threads = num_threads, 0
        self._queue = deque[Job[T]]()
        self._lock, self._ended = threading.Lock(), threading.Condition()
        self._entered, self._current = 0, 0
        self.waited_s = 0.0  # for images that were not there yet, in all

    @contextmanager
    def unit(self, images: Sequence[Sequence[ImageRef]], fetch: Fetch[T]) -> Iterator[list[list[Job[T] | Here[T]]]]:
        """Fetch these images, a list for each row. The block runs when the units that came before are through."""
        with self._lock:
            number, self._entered = self._entered, self._entered + 1
            rows = [[self._job(image, fetch) for image in row] for row in images]
            self._queue.extend(job for job in itertools.chain(*rows) if isinstance(job, Job))
            self._start_threads()
        try:
            with self._ended:
                self._ended.wait_for(lambda: self._current == number)
            yield rows
        finally:
            for job in itertools.chain(*rows):
                self._drop(job)
            with self._ended:
                self._ended.wait_for(lambda: self._current == number)
                self._current += 1
                self._ended.notify_all()

    def take(self, jobs: Sequence[Job[T] | Here[T]]) -> Iterator[T]:
        """Hand out the images of one row, each to be used before the next is asked for; raises RowError."""
        try:
            for job in jobs:
                result = job.fetch(job.image, _no_wait) if isinstance(job, Here) else self._result_of(job)
                if isinstance(result, Failure):
                    raise RowError(result.stage, result.type, result.message)
                assert result is not None
                yield result
                del result
                self._drop(job)
        finally:
            for job in jobs:
                self._drop(job)

    def _job(self, image: ImageRef, fetch: Fetch[T]) -> Job[T] | Here[T]:
        return Here(image, fetch) if image.data is not None else Job(image, fetch, self._budget.enter())

    def _result_of(self, job: Job[T]) -> T | Failure | None:
        began = time.monotonic()
        try:
            self._wait(job)
        finally:
            self.waited_s += time.monotonic() - began  # of one unit at a time
        result, job.result = job.result, None
        return result

    def _wait(self, job: Job[T]) -> None:
        if self._seconds is None:
            job.done.wait()
            return
        while not job.done.wait(self._left(job)):
            if self._left(job) <= 0 and self._abandon(job):
                message = f"the image could not be fetched in {self._seconds:g} s (--row-seconds): retry the row"
                raise RowError("fetch", "TimedOut", message)

    def _abandon(self, job: Job[T]) -> bool:
        """Start another thread instead of the one that hangs with this job; False where it is done after all."""
        with self._lock:
            job.abandoned = not job.done.is_set()
            if job.abandoned:
                self._num_threads -= 1
                self._start_threads()
            return job.abandoned

    def _left(self, job: Job[T]) -> float:
        assert self._seconds is not None
        began = job.began  # once: its thread may change it at any moment
        return self._seconds if began is None else max(0.0, began + self._seconds - time.monotonic())

    def _drop(self, job: Job[T] | Here[T]) -> None:
        if isinstance(job, Job):
            job.dropped, job.result = True, None
            self._budget.leave(job.number)

    def _start_threads(self) -> None:
        for _ in range(min(self._most_threads - self._num_threads, len(self._queue))):
            self._num_threads += 1
            threading.Thread(target=self._work, name="fetch", daemon=True).start()

    def _work(self) -> None:
        """Fetch until nothing is left to be."""
        while True:
            with self._lock:
                if not self._queue:
                    self._num_threads -= 1
                    return
                job = self._queue.popleft()
            self._run(job)
            with self._lock:
                job.done.set()
                if job.abandoned:
                    return

    def _run(self, job: Job[T]) -> None:
        if job.dropped:
            return

        def room(num_bytes: int) -> None:
            job.began = None  # what counts is the fetch, not the wait for room
            self._budget.hold(job.number, num_bytes)
            job.began = time.monotonic()

        job.began = time.monotonic()
        result = job.fetch(job.image, room)
        if not isinstance(result, Failure):
            room(self._size(result))
        if not job.dropped:
            job.result = result


def _no_wait(num_bytes: int) -> None:
    """Hold bytes that are there already."""
