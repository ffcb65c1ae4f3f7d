"""Turns: an engine draws tokens in one way at a time; who wants another waits until those at work are through."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from schemas.engine import Sampling


class Turns:
    """Many at once that want the same; `change` is called between them and those that want another."""

    def __init__(self, first: Sampling, change: Callable[[Sampling], None]) -> None:
        self._changed = threading.Condition()
        self._change = change
        self._current = first
        self._num_at_work = 0

    @contextmanager
    def take(self, sampling: Sampling) -> Iterator[None]:
        """Wait for the turn of this sampling; it lasts as long as anybody is in such a block."""
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


class Gate:
    """Many at once, or one alone; who wants to be alone is let in before those that come after."""

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
