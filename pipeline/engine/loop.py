"""The thread that steps the scheduler, for any number of callers at once."""

import atexit
import itertools
import threading
import time
import weakref
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from types import TracebackType

import torch

from pipeline.engine.prefill_group import PrefillGroup
from pipeline.engine.scheduler import Scheduler
from pipeline.engine.sequence import Sequence
from schemas.engine import StepWatch

_END_S = 30.0  # that the end of a process waits for a step
_running: "weakref.WeakSet[Loop]" = weakref.WeakSet()


@dataclass(slots=True, eq=False)
class Caller:
    """Somebody who waits for answers; `reading` as long as more of its samples may come before it waits."""

    number: int  # in the order in which callers came
    reading: bool = True


class Loop:
    """Steps a scheduler on a thread of its own as long as there are callers.

    The scheduler and all sequences belong to that thread: callers hand over what to add and what to abort, and the loop
    takes both between two steps. What ends the thread by an error is raised in every caller, now and later.
    """

    def __init__(self, scheduler: Scheduler, device: torch.device, watch: StepWatch) -> None:
        self._scheduler, self._device, self.watch = scheduler, device, watch
        self.waiting_s = 0.0  # callers there, and nothing to do until they hand in more
        self._changed = threading.Condition()  # guards all that follows
        self._callers: set[Caller] = set()
        self._numbers = itertools.count()
        self._added: list[PrefillGroup] = []
        self._aborted: list[Sequence] = []
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None  # why nothing is answered any more

    def enter(self) -> Caller:
        """Take in a caller, and start the thread for the first one."""
        with self._changed:
            self.check()
            caller = Caller(number=next(self._numbers))
            self._callers.add(caller)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
                self._thread.start()
                _running.add(self)
            return caller

    def leave(self, caller: Caller, unanswered: Iterable[Sequence]) -> None:
        """Let a caller go, and abort the sequences that it no longer waits for."""
        with self._changed:
            self._aborted += unanswered
            self._callers.discard(caller)
            self._changed.notify_all()

    def add(self, groups: Iterable[PrefillGroup]) -> None:
        """Hand groups over to the scheduler."""
        with self._changed:
            self.check()
            self._added += groups
            self._changed.notify_all()

    def wait(self, caller: Caller, sequence: Sequence) -> None:
        """Wait until a sequence is done; raises RuntimeError where it never will be."""
        with self._changed:
            reading, caller.reading = caller.reading, False
            while not sequence.is_done:
                self.check()
                self._changed.wait()
            caller.reading = reading

    def check(self) -> None:
        """Raise RuntimeError where nothing is answered any more."""
        if self._error is not None:
            raise RuntimeError(f"the engine answers nothing any more: {self._error}") from self._error

    def stop(self, error: BaseException) -> None:
        """Answer nothing any more, because of this error; those who wait are told."""
        with self._changed:
            self._error = self._error or error
            self._changed.notify_all()

    def close(self, error: BaseException) -> None:
        """Stop because of this error, wait for the thread, and let go of the scheduler."""
        self.stop(error)
        self.join()
        del self._scheduler

    def join(self, seconds: float | None = None) -> None:
        """Wait for the thread, which ends once there are no callers or after `stop`."""
        with self._changed:
            thread = self._thread
        if thread is not None:
            thread.join(seconds)

    @property
    def has_callers(self) -> bool:
        """Tell whether anybody may be waiting for answers."""
        return bool(self._callers)

    def _run(self) -> None:
        on_device = torch.cuda.device(self._device) if self._device.type == "cuda" else nullcontext()
        with _Reporting(self), on_device:
            try:
                while self._take_in():
                    self.watch.begin()
                    if self._scheduler.step(more_to_come=any(caller.reading for caller in list(self._callers))):
                        with self._changed:
                            self._changed.notify_all()
            finally:
                self.watch.rest()

    def _take_in(self) -> bool:
        """Wait for something to do and hand it to the scheduler; False once nobody waits for an answer any more."""
        with self._changed:
            since = time.perf_counter()
            while not self._added and self._scheduler.is_idle and self._callers and self._error is None:
                self.watch.rest()
                self._changed.wait()
            if self._callers:
                self.waiting_s += time.perf_counter() - since
            if self._added:
                self._scheduler.add(self._added)
            if self._aborted:
                self._scheduler.abort(self._aborted)
            self._added, self._aborted = [], []
            if self._callers and self._error is None:
                return True
            self._thread = None
            return False


class _Reporting:
    """Hands whatever ends the loop's thread to those who wait for it."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        if error is not None:
            self._loop.stop(error)
        return True


@atexit.register
def _end_with_the_process() -> None:
    """End threads before the interpreter does: one that it takes out of a kernel's midst aborts the process."""
    for loop in list(_running):
        loop.stop(RuntimeError("the process ends"))
    for loop in list(_running):
        loop.join(_END_S)
