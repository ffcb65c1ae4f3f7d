"""Lock: one driver a run folder, on any storage.

The owner rewrites the lock every few seconds. Another driver refuses while that goes on; a lock whose owner is gone is
taken over: at once on the owner's own machine, where its process can be looked for, elsewhere when the lock has not
changed for a while. No clock is compared with another machine's.
"""

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.run_folder.last_word import LastWord
from pipeline.run_folder.layout import state_path
from pipeline.storage import filesystem as fs
from schemas.errors import Refused

NAME = "driver.lock"
# In a store, two that take a stale lock over at once both write, and not every store refuses the second of two new
# files; after this both see whose word was the last.
_SETTLE_S = 0.5
_MOST_PID = 2**31 - 1


class FolderInUse(Refused):
    """Another driver works on the folder."""


class FolderLost(FolderInUse):
    """Another driver has taken the folder over from this one, at its work."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Seconds between two signs of an owner's life, and of the silence that is trusted."""

    beat_s: float = 10.0
    stale_s: float = 35.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """Who holds the folder. `machine` is the same for processes that see each other's ids."""

    token: str
    host: str
    machine: str
    pid: int
    pid_started: str
    beat: int = 0

    def to_json(self) -> bytes:
        """Return the owner as the lock has it."""
        return json.dumps(asdict(self)).encode()


class Lock:
    """A held lock; `check` says when another driver has taken it over."""

    def __init__(self, url: str, owner: Owner) -> None:
        self.url = url
        self.owner = owner
        self.lost = False
        self.last_word = LastWord(None)
        self._turn = threading.Lock()  # a beat that is on its way must not come after the end

    def check(self) -> None:
        """Raise FolderLost where the folder is no longer ours, as after a machine that slept for a minute."""
        if self.lost:
            raise FolderLost(f"{self.url} was taken over by another driver, or removed, while this one was silent")

    def confirm(self) -> None:
        """Check by a look at the lock itself, before what only one driver may do.

        Raises OSError where the store does not answer: then nobody knows whose folder it is.
        """
        self._look()
        self.check()

    def beat(self) -> None:
        """Show that the owner lives, unless another has taken over."""
        with self._turn, contextlib.suppress(OSError):  # a store that is away for a moment; the next beat tells
            self._look()
            if not self.lost:
                self.owner = replace(self.owner, beat=self.owner.beat + 1)
                fs.write_atomic(self.url, self.owner.to_json())

    def release(self) -> None:
        """Remove the lock, unless it is another's by now. From then on the driver's end is in the middle of nothing."""
        with self._turn, contextlib.suppress(OSError):  # a store that is away: it grows stale, what was done counts
            found = _read(self.url)
            if not self.lost and found is not None and _token(found) == self.owner.token:
                _remove(self.url, found)
        self.last_word.dismiss()

    def _look(self) -> None:
        """Read the lock. One that is gone is lost too: the driver that took it over may have ended by now."""
        if _token(_read(self.url)) != self.owner.token:
            self.lost = True


@contextlib.contextmanager
def hold(folder: str, timing: Timing | None = None) -> Iterator[Lock]:
    """Own the folder for the block. Raises FolderInUse where another driver does."""
    timing = timing or Timing()
    lock = Lock(state_path(folder, NAME), _this_process())
    done = threading.Event()
    beating = threading.Thread(target=_keep_beating, args=(lock, done, timing.beat_s), daemon=True)
    try:  # from the first: a stop may come at any line, and this process may live on, as a notebook's does
        _acquire(lock, timing)
        lock.last_word = LastWord.begin()
        beating.start()
        yield lock
    finally:
        done.set()
        if beating.ident is not None:
            beating.join()
        lock.release()


def still_holds(url: str, token: str) -> bool:
    """Return whether the driver of this token holds the lock: a worker that outlives its driver writes nothing."""
    return _token(_read(url)) == token


def _acquire(lock: Lock, timing: Timing) -> None:
    mine = lock.owner.to_json()
    if _create(lock.url, mine):
        if fs.local_path(lock.url) is not None:
            return
    else:
        try:
            found = _read(lock.url)
        except OSError as error:
            rule = "must be a file that a driver wrote"
            raise FolderInUse(f"{lock.url} {rule}, it cannot be read ({error}): look at it, then remove it") from error
        if found is not None and _lives(lock.url, found, timing):
            raise FolderInUse(_in_use(lock.url, found))
        if fs.local_path(lock.url) is not None:
            _replace_local(lock.url, found, mine)
            return
        fs.write_atomic(lock.url, mine)
    time.sleep(_SETTLE_S)
    if _token(now := _read(lock.url)) != lock.owner.token:
        raise FolderInUse(_in_use(lock.url, now or b""))


def _create(url: str, mine: bytes) -> bool:
    """Put a lock where none is; raise Refused where the folder may not be written."""
    try:
        return fs.create_new(url, mine)
    except PermissionError as error:
        raise Refused(f"{url} must be a file that can be written, it cannot be: {error}") from error


def _replace_local(url: str, found: bytes | None, mine: bytes) -> None:
    """Take a dead owner's lock away and put ours there; of many drivers that try at once, one does."""
    if found is not None and not fs.remove_exactly(url, found) and (now := _read(url)) is not None:
        raise FolderInUse(_in_use(url, now))
    if not fs.create_new(url, mine):
        raise FolderInUse(_in_use(url, _read(url) or b""))


def _remove(url: str, found: bytes) -> None:
    """Remove a lock of our own, and on a disk no other that has come there since it was read."""
    if fs.local_path(url) is None:
        fs.delete(url)
    else:
        fs.remove_exactly(url, found)


def _keep_beating(lock: Lock, done: threading.Event, beat_s: float) -> None:
    while not lock.lost and not done.wait(beat_s):
        lock.beat()


def _lives(url: str, found: bytes, timing: Timing) -> bool:
    """Return whether the owner of the lock is at work: its process is there, or the lock changes."""
    owner = _parse(found)
    pid = owner.get("pid")
    if owner.get("machine") == this_machine() and isinstance(pid, int) and 0 < pid <= _MOST_PID:
        started = _started(pid)
        return started is not None and started == owner.get("pid_started")
    deadline = time.monotonic() + timing.stale_s
    while time.monotonic() < deadline:
        time.sleep(min(1.0, timing.stale_s / 10))
        now = _read(url)
        if now != found:
            return now is not None
    return False


def _in_use(url: str, found: bytes) -> str:
    owner = _parse(found)
    named = all(name in owner for name in ("pid", "host"))
    who = f"process {owner['pid']} on {owner['host']}" if named else "an unknown owner"
    return f"another driver works on this folder ({who}): wait for it, or stop it; its lock is {url}"


def _this_process() -> Owner:
    pid = os.getpid()
    return Owner(
        token=uuid.uuid4().hex,
        host=socket.gethostname(),
        machine=this_machine(),
        pid=pid,
        pid_started=_started(pid) or "",
    )


def this_machine() -> str:
    """Return a name of this boot of this machine and, in a container, of its own set of process ids."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):  # not Linux: the host's name has to do
        parts += [Path("/proc/sys/kernel/random/boot_id").read_text().strip(), os.readlink("/proc/self/ns/pid")]
    return " ".join(parts)


def _started(pid: int) -> str | None:
    """Return when a process of this machine began, which tells it from a later one of the same id; None where it is
    gone."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    try:
        fields = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rsplit(")", 1)[1].split()  # names are bytes
    except OSError:
        return ""
    return None if fields[0] in "ZX" else fields[19]


def _read(url: str) -> bytes | None:
    try:
        return fs.read_bytes(url)
    except FileNotFoundError:
        return None


def _token(data: bytes | None) -> str | None:
    return _parse(data).get("token") if data is not None else None


def _parse(data: bytes) -> dict[str, Any]:
    """Return what a lock says; nothing where it was torn by a kill."""
    try:
        owner = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return owner if isinstance(owner, dict) else {}
