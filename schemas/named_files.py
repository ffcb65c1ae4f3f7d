"""Named files: the bytes of a file that a flag names; a pipe that nobody writes to is refused, not waited for."""

import errno
import os
import stat

_MOST_BYTES = 2**20  # a device has no end


def read_named(path: str | os.PathLike[str]) -> bytes:
    """Return the bytes of a file or of a pipe, as of bash's <(...), of a MiB at most. Raises OSError."""
    # Opened without waiting: for a pipe that no process has open to write that would be without end.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb", buffering=0) as raw:
        begun = raw.read(1)  # None where a writer is there, and has written nothing yet
        if begun == b"" and stat.S_ISFIFO(os.fstat(descriptor).st_mode):
            raise OSError(errno.EPIPE, "it is a pipe that nobody writes to, with nothing in it")
        os.set_blocking(descriptor, True)
        data = begun or b""
        while len(data) <= _MOST_BYTES and (more := raw.read(_MOST_BYTES)):
            data += more
    if len(data) > _MOST_BYTES:
        raise OSError(errno.EFBIG, f"it must have at most {_MOST_BYTES:,} bytes, it has more")
    return data
