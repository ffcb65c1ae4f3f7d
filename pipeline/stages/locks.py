"""Locks of a worker's threads: shared by sampling settings, and shared or exclusive."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from schemas.engine import Sampling


class ModeLock:
    """A lock shared by those of one sampling: an engine samples in one way at a time. `change` is called between."""

    def __init__(self, first: Sampling, change: Callable[[Sampling], None]) -> None:
        self._changed = threading.Condition()
        self._change = change
        self._current = first
        self._num_at_work = 0

    @contextmanager
    def take(self, sampling: Sampling) -> Iterator[None]:
        """Hold the lock for this sampling, once nobody holds it for another."""
        with self._changed:
            self._changed.wait_for(lambda: sampling == self._current or not self._num_at_work)
            if sampling != self._current:
                self._change(sampling)
                self._current = sampling
            self._num_at_work += 1
        try:
            yield
        finally:
            with self._changed:
                self._num_at_work -= 1
                self._changed.notify_all()


class RWLock:
    """A readers-writer lock; a writer that waits is let in before readers that come after it."""

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
