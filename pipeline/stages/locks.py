"""Locks of a worker's threads: one shared by users of the same sampling, one for readers and writers."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from schemas.engine import Sampling


class ModeLock:
    """A lock shared by users of one sampling, as an engine has one at a time; `change` switches to another."""

    def __init__(self, first: Sampling, change: Callable[[Sampling], None]) -> None:
        self._changed = threading.Condition()
        self._change = change
        self._current = first
        self._num_users = 0

    @property
    def current(self) -> Sampling:
        """Return the sampling that its users share; asked by those who hold it."""
        return self._current

    @contextmanager
    def take(self, sampling: Sampling) -> Iterator[None]:
        """Hold the lock for this sampling, once nobody holds it for another."""
        with self._changed:
            self._changed.wait_for(lambda: sampling == self._current or not self._num_users)
            if sampling != self._current:
                self._change(sampling)
                self._current = sampling
            self._num_users += 1
        try:
            yield
        finally:
            with self._changed:
                self._num_users -= 1
                self._changed.notify_all()


class RWLock:
    """A readers-writer lock; a waiting writer goes before readers that come after it."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._num_readers = 0
        self._has_writer = False
        self._num_waiting = 0  # writers

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Hold the lock as one of any number of readers."""
        with self._changed:
            self._changed.wait_for(lambda: not self._has_writer and not self._num_waiting)
            self._num_readers += 1
        try:
            yield
        finally:
            with self._changed:
                self._num_readers -= 1
                self._changed.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the lock as the only writer, without any reader."""
        with self._changed:
            self._num_waiting += 1
            self._changed.wait_for(lambda: not self._has_writer and not self._num_readers)
            self._num_waiting -= 1
            self._has_writer = True
        try:
            yield
        finally:
            with self._changed:
                self._has_writer = False
                self._changed.notify_all()
