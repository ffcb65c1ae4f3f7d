"""The watchdog: a row that takes too long ends its worker, even in C code that no thread of that worker can interrupt.

A small process of its own sees what is worked on. Where that does not end in time it writes down what it was (the
marker of quarantine.py), then kills the worker; the next try of the unit finds what it wrote.
`python -m pipeline.execution.watchdog` is that process: it imports nothing until it has something to write.
"""

import json
import mmap
import os
import select
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.run_folder.markers import Note

_POLL_S = 0.5
_BYTES = 2**20
_HEAD = struct.Struct("qq")  # the text's number and its length


class Watchdog:
    """Watches over its own process. What is expected stands in memory that both share: to tell it costs no call."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._expected: dict[str, tuple[float, str, str]] = {}
        self._shared: _Shared | None = None  # from the first that is expected

    def expect(self, name: str, until: float, note: "Note") -> None:
        """Kill this process and leave the note, unless something else is heard of this name before time.monotonic()
        is `until`."""
        with self._lock:
            self._expected[name] = (until, note.url, note.text)
            self._tell()

    def done(self, name: str) -> None:
        """Expect nothing of that name any more."""
        with self._lock:
            if self._expected.pop(name, None):
                self._tell()

    def _tell(self) -> None:
        if self._shared is None:
            descriptor, name = tempfile.mkstemp()
            os.unlink(name)
            os.ftruncate(descriptor, _BYTES)
            self._shared = _Shared(descriptor)
            self._start(descriptor)
            os.close(descriptor)
        self._shared.write(json.dumps(list(self._expected.values())).encode())

    def _start(self, descriptor: int) -> None:
        path = os.pathsep.join(folder or os.getcwd() for folder in sys.path)
        command = [sys.executable, "-m", "pipeline.execution.watchdog", str(os.getpid()), str(descriptor)]
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, env={**os.environ, "PYTHONPATH": path}, pass_fds=[descriptor]
        )
        weakref.finalize(self, _end, process)


class _Shared:
    """A text in shared memory, written by one process and read by another; its number is odd while it is written."""

    def __init__(self, descriptor: int) -> None:
        self._memory = mmap.mmap(descriptor, _BYTES)
        self._number = 0

    def write(self, text: bytes) -> None:
        """Replace the text; one that is too long becomes an empty one."""
        text = text if len(text) <= _BYTES - _HEAD.size else b"[]"
        _HEAD.pack_into(self._memory, 0, self._number + 1, 0)
        self._memory[_HEAD.size : _HEAD.size + len(text)] = text
        self._number += 2
        _HEAD.pack_into(self._memory, 0, self._number, len(text))

    def read(self) -> bytes | None:
        """Return the text; None while it is being written."""
        number, length = _HEAD.unpack_from(self._memory)
        text = self._memory[_HEAD.size : _HEAD.size + length]
        return text if _HEAD.unpack_from(self._memory) == (number, length) and not number % 2 else None


def main() -> None:
    """Watch the process whose number is given, until it ends or is ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the worker's matter
    worker, shared = int(sys.argv[1]), _Shared(int(sys.argv[2]))
    last, waits_until, stopped_s = time.monotonic(), 0.0, 0.0
    while not select.select([0], [], [], _POLL_S)[0]:  # it has the worker's other end: readable is that it is gone
        now = time.monotonic()
        is_stopped = _is_stopped(worker)
        if is_stopped or now > last + 4 * _POLL_S:  # this very process did not run, and the worker did not either
            stopped_s += now - last
            waits_until = now + stopped_s
        else:
            stopped_s = 0.0
        last = now
        expected = json.loads(shared.read() or b"[]")
        late = [(url, text) for until, url, text in expected if until < now]
        if late and is_stopped:  # what it is at is not to blame, and is done elsewhere
            os.kill(worker, signal.SIGKILL)
            return
        if late and now > waits_until:
            _put_down(worker, *late[0])
            return


def _is_stopped(worker: int) -> bool:
    """Return whether the worker is held, as by SIGSTOP or a debugger."""
    try:
        with open(f"/proc/{worker}/stat", "rb") as file:
            return file.read().rsplit(b") ", 1)[1][:1] in b"Tt"
    except OSError:  # not Linux, or just gone
        return False


def _put_down(worker: int, url: str, text: str) -> None:
    """Stop the worker where it is, write down why, and kill it whatever comes of that."""
    with suppress(ProcessLookupError):
        os.kill(worker, signal.SIGSTOP)
        try:
            _leave(url, text)
        finally:
            os.kill(worker, signal.SIGKILL)


def _leave(url: str, text: str) -> None:
    from pipeline.storage import filesystem as fs  # only now: half a second and 50 MB that no other row costs

    fs.write_atomic(url, text.encode())


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    with suppress(BrokenPipeError):
        if process.stdin is not None:
            process.stdin.close()


if __name__ == "__main__":
    main()
