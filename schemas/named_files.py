"""Named files: the bytes of a file that a flag names; a pipe that nobody writes to is refused after some seconds."""

import errno
import io
import os
import stat
import time

_MOST_BYTES = 2**20  # a device has no end
_WAIT_S, _TICK_S = 2.0, 0.01  # for a writer, who may wait for a reader in turn


def read_named(path: str | os.PathLike[str]) -> bytes:
    """Return the bytes of a file or of a pipe, as of bash's <(...), of a MiB at most. Raises OSError."""
    # Opened without waiting: for a pipe that no process has open to write that would be without end.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb", buffering=0) as raw:
        begun = raw.read(1)  # None where a writer is there, and has written nothing yet
        if begun == b"" and stat.S_ISFIFO(os.fstat(descriptor).st_mode):
            begun = _once_written(raw)
        os.set_blocking(descriptor, True)
        data = begun or b""
        while len(data) <= _MOST_BYTES and (more := raw.read(_MOST_BYTES)):
            data += more
    if len(data) > _MOST_BYTES:
        raise OSError(errno.EFBIG, f"it must have at most {_MOST_BYTES:,} bytes, it has more")
    return data


def _once_written(pipe: io.FileIO) -> bytes | None:
    """Return what a pipe begins with once somebody writes to it; raise OSError where nobody does."""
    until = time.monotonic() + _WAIT_S
    while (begun := pipe.read(1)) == b"":
        if time.monotonic() > until:
            raise OSError(errno.EPIPE, "it is a pipe that nobody writes to, with nothing in it")
        time.sleep(_TICK_S)
    return begun
