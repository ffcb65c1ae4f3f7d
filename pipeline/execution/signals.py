"""Signals: what an interrupt or a spot notice does to a running job.

The first signal ends the job in order, which takes seconds; what was written stays. The second one, or ten seconds,
ends the process at once.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType

from schemas.wording import GO_ON

GRACE_S = 8.0
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(BaseException):
    """A signal asked the job to stop; no `except Exception` may swallow it."""

    def __init__(self, number: int, guard: threading.Timer) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_status = 128 + number
        self.guard = guard  # ends the process, unless it is cancelled


@contextlib.contextmanager
def stop_on_signals(before_end: Callable[[], None] | None = None, grace_s: float = GRACE_S) -> Iterator[None]:
    """Raise Stopped in the main thread on SIGINT or SIGTERM; elsewhere than in the main thread, change nothing.

    The process ends `grace_s` later, whatever it waits for, unless the exception has left `guarded` by then; it says so
    itself, after `before_end`.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, _frame: FrameType | None) -> None:
        for one in _SIGNALS:
            signal.signal(one, signal.SIG_DFL)
        sys.stderr.write(f"\nstopping on {signal.Signals(number).name}\n")
        guard = threading.Timer(grace_s, _end, [128 + number, before_end])  # a cluster that does not answer
        guard.daemon = True
        guard.start()
        raise Stopped(number, guard)

    before = {number: signal.signal(number, stop) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, action in before.items():
            signal.signal(number, action)


def stopped_line() -> str:
    """Return what is said where a job has stopped on a signal."""
    return f"stopped; {GO_ON[0].lower()}{GO_ON[1:]}"


def _end(status: int, before: Callable[[], None] | None) -> None:
    try:
        if before is not None:
            before()
        sys.stderr.write(f"{stopped_line()}\n")
        sys.stderr.flush()
    finally:  # whoever does not listen
        os._exit(status)


@contextlib.contextmanager
def guarded() -> Iterator[None]:
    """Cancel what would end the process once a stop has left the block: whoever catches it there may go on."""
    try:
        yield
    except BaseException as error:
        cause: BaseException | None = error
        while cause is not None:  # the stop itself, or what was raised while it was on its way
            if isinstance(cause, Stopped):
                cause.guard.cancel()
            cause = cause.__context__
        raise
