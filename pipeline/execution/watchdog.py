"""The watchdog: a row that takes too long ends its worker, even in C code that no thread of that worker can interrupt.

A small process of its own sees what is worked on. Where that does not end in time it writes down what it was (the
marker of quarantine.py), then kills the worker; the next try of the unit finds what it wrote. Where the interpreter is
held, all that its threads are at is late, and nobody knows which holds it: of several none is accused, as quarantine
has each done alone next.
`python -m pipeline.execution.watchdog` is that process: it imports nothing until it has something to write.
"""

import itertools
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
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from pipeline.run_folder.markers import Note

_POLL_S = 0.5
_BEAT_S = 0.1
_HELD_S = 5 * _BEAT_S  # without a beat
_STOPPED_S = 1.0  # at most, until a worker that is told to stop does
_NUMBER = struct.Struct("q")
_NUM_TEXTS, _NUM_BEATS, _HEAD = 0, _NUMBER.size, 2 * _NUMBER.size  # where they lie, before two texts
_MOST = 2**20  # bytes of a text
_BYTES = _HEAD + 2 * (_NUMBER.size + _MOST)
_Expected: TypeAlias = tuple[float, str, str]  # until when, and the note: its url and text


class Watchdog:
    """Watches over its own process. What is expected stands in memory that both share: to tell it costs no call."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._expected: dict[str, _Expected] = {}
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
            self._start(descriptor, self._shared)
            os.close(descriptor)
        self._shared.write(json.dumps(list(self._expected.values())).encode())

    def _start(self, descriptor: int, shared: "_Shared") -> None:
        path = os.pathsep.join(folder or os.getcwd() for folder in sys.path)
        command = [sys.executable, "-m", "pipeline.execution.watchdog", str(os.getpid()), str(descriptor)]
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, env={**os.environ, "PYTHONPATH": path}, pass_fds=[descriptor]
        )
        ended = threading.Event()
        threading.Thread(target=shared.beat, args=(ended,), daemon=True).start()
        weakref.finalize(self, _end, process, ended)


class _Shared:
    """A text in shared memory, written by one process and read by another. A new one is written beside the last, which
    is there until the new one is whole: whatever happens to the writer."""

    def __init__(self, descriptor: int) -> None:
        self._memory = mmap.mmap(descriptor, _BYTES)

    def write(self, text: bytes) -> None:
        """Replace the text; one that is too long becomes an empty one."""
        text = text if len(text) <= _MOST else b"[]"
        number = self._number(_NUM_TEXTS) + 1
        begin = self._begin(number)
        self._put(begin, len(text))
        self._memory[begin + _NUMBER.size : begin + _NUMBER.size + len(text)] = text
        self._put(_NUM_TEXTS, number)

    def read(self) -> bytes | None:
        """Return the text; None where it was replaced meanwhile."""
        number = self._number(_NUM_TEXTS)
        begin = self._begin(number)
        text = self._memory[begin + _NUMBER.size : begin + _NUMBER.size + self._number(begin)]
        return text if self._number(_NUM_TEXTS) == number else None

    def beat(self, ended: threading.Event) -> None:
        """Show, until it has ended, that the interpreter takes turns."""
        for number in itertools.count(1):
            self._put(_NUM_BEATS, number)
            if ended.wait(_BEAT_S):
                return

    def is_held(self) -> bool:
        """Return whether nothing else runs in the writer's interpreter now."""
        before = self._number(_NUM_BEATS)
        time.sleep(_HELD_S)
        return self._number(_NUM_BEATS) == before

    def _begin(self, number: int) -> int:
        """Return where this text begins, its length first."""
        return _HEAD + number % 2 * (_NUMBER.size + _MOST)

    def _number(self, place: int) -> int:
        number: int = _NUMBER.unpack_from(self._memory, place)[0]
        return number

    def _put(self, place: int, number: int) -> None:
        _NUMBER.pack_into(self._memory, place, number)


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
        late = _late(shared, now)
        if late and is_stopped:  # what it is at is not to blame, and is done elsewhere
            os.kill(worker, signal.SIGKILL)
            return
        if late and now > waits_until and _put_down(worker, shared, now):
            return


def _expected(shared: _Shared) -> list[_Expected]:
    return [(until, url, text) for until, url, text in json.loads(shared.read() or b"[]")]


def _late(shared: _Shared, now: float) -> list[_Expected]:
    return [one for one in _expected(shared) if one[0] < now]


def _is_stopped(worker: int) -> bool:
    """Return whether the worker is held, as by SIGSTOP or a debugger."""
    try:
        with open(f"/proc/{worker}/stat", "rb") as file:
            return file.read().rsplit(b") ", 1)[1][:1] in b"Tt"
    except OSError:  # not Linux, or just gone
        return False


def _put_down(worker: int, shared: _Shared, now: float) -> bool:
    """Stop the worker where it is, write down why if that is known, and kill it whatever comes of that. Return False,
    and let it go on, where what was late has come to its end meanwhile: what is at work by now is not to blame.
    """
    is_held = len(_expected(shared)) > 1 and shared.is_held()
    with suppress(ProcessLookupError):
        os.kill(worker, signal.SIGSTOP)
        ends = time.monotonic() + _STOPPED_S
        while not _is_stopped(worker) and time.monotonic() < ends:  # a signal takes its time
            time.sleep(_STOPPED_S / 1000)
        if not (late := _late(shared, now)):
            os.kill(worker, signal.SIGCONT)
            return False
        try:
            if not is_held:
                _leave(*late[0][1:])
        finally:
            os.kill(worker, signal.SIGKILL)
    return True


def _leave(url: str, text: str) -> None:
    from pipeline.storage import filesystem as fs  # only now: half a second and 50 MB that no other row costs

    fs.write_atomic(url, text.encode())


def _end(process: subprocess.Popen[bytes], ended: threading.Event) -> None:
    ended.set()
    process.kill()
    process.wait()
    with suppress(BrokenPipeError):
        if process.stdin is not None:
            process.stdin.close()


if __name__ == "__main__":
    main()
