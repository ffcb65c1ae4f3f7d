"""Cluster watch: what ends a driver whose cluster has gone away, in seconds and with a line that says so.

Ray itself waits for a minute and then ends the process without a word. The processes that a driver cannot do without
are asked every other second for a word; one that says none, time and again, is lost. A loss is raised in the main
thread, wherever that is; one that does not come out of Ray any more is ended with its lock released.
"""

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from types import FrameType
from typing import NoReturn, TypeVar

from pipeline.environment import head_address
from pipeline.execution.signals import stop_on_signals
from schemas.job import JobSettings
from schemas.wording import GO_ON

T = TypeVar("T")

_SIGNAL = signal.SIGUSR2  # interrupts whatever the main thread waits for
_ANSWER_S = 6.0  # that a part may take; what it is asked needs none of its own work, however busy it is
_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))  # and no settings
_LEAST_TRIES = 2
_ASK_AGAIN_S = 1.0
_SAY_AGAIN_S = 30.0
_LOSSES = 20  # of a cluster, that a command waits through
_COUNT = "LLAVA_BATCH_CLUSTERS_LOST"
_MOST_FILES = 2**16


class ClusterLost(RuntimeError):
    """A process of the cluster that the driver cannot do without is gone; what is done stays."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A process of the cluster, and where it takes connections."""

    what: str
    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.what} at {self.host}:{self.port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeLimits:
    """Seconds: between two questions to a part, of its silence, and of the end that its loss takes."""

    every_s: float = 2.0
    refused_s: float = 6.0  # nothing listens there
    silent_s: float = 18.0  # no answer at all, as of a machine that is gone, or a process that is stopped
    answer_s: float = _ANSWER_S
    grace_s: float = 8.0

    def most_s(self, missing: OSError) -> float:
        """Return how long a part may be missing in this way."""
        return self.refused_s if isinstance(missing, ConnectionRefusedError) else self.silent_s


@dataclass(slots=True, kw_only=True)
class Watch:
    """Asks the parts until it is closed."""

    parts: Sequence[Part]
    release: Callable[[], None]  # what must be let go of where the main thread does not come back
    wait_s: float = 0.0  # for a cluster that is lost
    limits: TimeLimits = field(default_factory=TimeLimits)
    lost: str | None = None  # what is said of it
    closed: threading.Event = field(default_factory=threading.Event)
    left: threading.Event = field(default_factory=threading.Event)  # the main thread has left the work

    def check(self, cause: BaseException) -> None:
        """Raise ClusterLost where a part is missing: it is the cause of what Ray has raised, who may notice before."""
        gone = [part for part in self.parts if not is_there(part, self.limits.answer_s)]
        if gone and self.lost is None:
            self.lost = f"the cluster is lost: {gone[0]} does not answer"
        if self.lost is not None:
            self.left.set()
            raise ClusterLost(self.lost) from cause

    def leave(self) -> None:
        """Ask no more, as a Ray of our own is about to end: the main thread has left the work."""
        self.left.set()

    def run(self) -> None:
        """Ask, until a part is lost or nobody wants to know any more."""
        absences: dict[Part, Absence] = {}
        while not self.closed.wait(self.limits.every_s):
            if self.lost is not None:  # Ray has noticed before
                self._end(self.lost)
                return
            if self.left.is_set():
                return
            for part in self.parts:
                began = time.monotonic()
                missing = _missing(part, self.limits.answer_s)
                if missing is None:
                    absences.pop(part, None)
                    continue
                absence, now = absences.setdefault(part, Absence(began=began)), time.monotonic()
                if absence.lasts(now, self.limits.most_s(missing)):
                    self._end(f"the cluster is lost: {part} has not answered for {now - absence.began:.0f} s")
                    return

    def _end(self, lost: str) -> None:
        self.lost = lost
        if not self.left.is_set():
            signal.pthread_kill(threading.main_thread().ident or 0, _SIGNAL)
        if not self.closed.wait(self.limits.grace_s):
            if self.wait_s and num_losses() < _LOSSES:
                begin_again(lost, self.wait_s, self.release)
            self.release()
            sys.stderr.write(f"\nerror: {lost}\n{GO_ON}\n")
            sys.stderr.flush()
            os._exit(1)


@dataclass(slots=True, kw_only=True)
class Absence:
    """Counts how long, and how often, a part has not answered.

    One try proves nothing, however long it took: this process may have been stopped meanwhile, together with the part.
    """

    began: float
    tries: int = 0

    def lasts(self, now: float, most_s: float) -> bool:
        """Count one more try; return whether the part is lost."""
        self.tries += 1
        return self.tries >= _LEAST_TRIES and now - self.began >= most_s


@contextlib.contextmanager
def watched(watch: Watch) -> Iterator[Watch]:
    """Raise ClusterLost in the block where a part goes away; elsewhere than in the main thread, nothing."""
    if threading.current_thread() is not threading.main_thread() or not watch.parts:
        yield watch
        return

    def stop(_number: int, _frame: FrameType | None) -> None:
        if not watch.left.is_set():
            watch.left.set()
            raise ClusterLost(watch.lost)

    before = signal.signal(_SIGNAL, stop)
    thread = threading.Thread(target=watch.run, daemon=True)
    thread.start()
    try:
        yield watch
    finally:
        watch.closed.set()
        thread.join()
        signal.signal(_SIGNAL, before)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """Wishes of a job for the Ray that it runs on; no answer depends on them."""

    dashboard: bool = False
    worker_logs: bool = False
    wait_s: float = 0.0  # for a cluster that is not there, or goes away

    @classmethod
    def of(cls, jobs: Sequence[JobSettings]) -> "Wishes":
        """Return what these jobs together wish."""
        return cls(
            dashboard=any(job.dashboard for job in jobs),
            worker_logs=any(job.worker_logs for job in jobs),
            wait_s=max(job.wait_for_cluster for job in jobs),
        )


def going_on(work: Callable[[], T], wishes: Wishes, release: Callable[[], None]) -> T:
    """Do the work; where the cluster was lost meanwhile and is to be waited for, begin the whole command again."""
    try:
        return work()
    except ClusterLost as error:
        if wishes.wait_s and num_losses() < _LOSSES:
            begin_again(str(error), wishes.wait_s, release)
        raise


def begin_again(lost: str, wait_s: float, release: Callable[[], None]) -> NoReturn:
    """Start this process's command again instead of it, which waits for the cluster and answers what is left.

    In this one Ray's own threads would end it a minute after the loss, whatever it waits for.
    """
    sys.stderr.write(f"\n{lost}: waiting up to {wait_s:g} s for it; what is done stays\n")
    sys.stderr.flush()
    release()
    os.environ[_COUNT] = str(num_losses() + 1)
    os.closerange(3, _MOST_FILES)  # connections to a cluster that would take this process for the one before
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def num_losses() -> int:
    """Return how often this command has lost its cluster."""
    return int(os.environ.get(_COUNT, "0"))


def wait_for_head(wait_s: float) -> None:
    """Wait, so long at most, until the head that RAY_ADDRESS names answers; say so every 30 s."""
    address, began, said_at = head_address(), time.monotonic(), -_SAY_AGAIN_S
    if address is None:
        return
    part = Part(what="the head of the cluster", host=address[0], port=address[1])
    with stop_on_signals():
        while not is_there(part) and (waited_s := time.monotonic() - began) < wait_s:
            if waited_s - said_at >= _SAY_AGAIN_S:
                sys.stderr.write(f"waiting for {part}, {wait_s - waited_s:.0f} s more at most\n")
                said_at = waited_s
            time.sleep(_ASK_AGAIN_S)


def is_there(part: Part, answer_s: float = _ANSWER_S) -> bool:
    """Return whether the part answers."""
    return _missing(part, answer_s) is None


def _missing(part: Part, answer_s: float) -> OSError | None:
    """Return why the part does not answer, None where it does.

    A connection alone says nothing: the system takes it for a process that is stopped, too. A server of HTTP/2, as all
    parts are, answers the client's first words by itself. One that hangs up, as on who speaks no TLS, lives as well.
    """
    try:
        with socket.create_connection((part.host, part.port), answer_s) as connection:
            connection.sendall(_HELLO)
            connection.recv(1)
    except (ConnectionResetError, BrokenPipeError):
        return None
    except OSError as error:
        return error
    return None
