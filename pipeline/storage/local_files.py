"""Local files: those of this machine, opened only where they have bytes of their own, written and created whole."""

import contextlib
import errno
import fcntl
import os
import shutil
import stat
import uuid
from collections.abc import Iterator
from typing import IO

from schemas.named_files import read_named


class NotRegular(OSError):
    """The path has no bytes of its own: a folder, a pipe, a device."""


# Regular files some of which are the secrets of this process; what else is in /dev is no regular file.
_OF_THE_SYSTEM = ("/proc/", "/sys/", "/dev/")
_BUT = "/dev/shm/"
_NO_LOCKS = frozenset({errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EBADF})


def is_of_the_system(path: str) -> bool:
    """Return whether a path leads to what is no row's business, links resolved."""
    real = os.path.realpath(path)
    return real.startswith(_OF_THE_SYSTEM) and not real.startswith(_BUT)


def nearest(path: str) -> str:
    """Return what is there of a path, as far as one may look: itself, or the nearest thing above it."""
    while True:
        try:
            os.lstat(path)
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            path = os.path.dirname(path)
        else:
            return path


def open_regular(path: str) -> IO[bytes]:
    """Open a file that has bytes of its own: a pipe would be waited for, a device has no end."""

    if not stat.S_ISREG(os.stat(path).st_mode):  # to open a device may already do something
        raise NotRegular(f"{path} is not a regular file")
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):  # it was replaced meanwhile
        os.close(descriptor)
        raise NotRegular(f"{path} is not a regular file")
    return os.fdopen(descriptor, "rb")


def read_text(path: str | os.PathLike[str]) -> str:
    """Return the text of a file that a flag names, of a MiB at most. Raises OSError, and UnicodeDecodeError."""
    return read_named(path).decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")  # as Python reads text


def files_below(path: str) -> Iterator[tuple[str, os.stat_result]]:
    """Yield every visible file below a folder, none where there is no folder. Links to folders are not followed."""
    folders = [path] if os.path.isdir(path) else []
    while folders:
        with contextlib.suppress(FileNotFoundError), os.scandir(folders.pop()) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
                elif entry.is_file():
                    with contextlib.suppress(FileNotFoundError):  # deleted meanwhile
                        yield entry.path, entry.stat()


def write_whole(path: str, data: bytes, *, durable: bool = True) -> None:
    """Put `data` at `path` in one step, over what was there; `durable` False where a machine that dies may lose it."""
    folder, name = os.path.split(path)
    os.makedirs(folder, exist_ok=True)
    half = os.path.join(folder, f".{name}.{uuid.uuid4().hex}.tmp")  # hidden from listings
    try:
        with _said_of(path), open(half, "xb") as file:
            file.write(data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(half, path)
    except BaseException:  # an interrupt as well must not leave half a file behind
        with contextlib.suppress(OSError):  # not there; or the error is of a disk that takes nothing any more
            os.unlink(half)
        raise


@contextlib.contextmanager
def _said_of(path: str) -> Iterator[None]:
    """Have what fails name the file that was to be written: a full disk names none, and a half says nobody anything."""
    try:
        yield
    except OSError as error:
        error.filename = path
        raise


def create_whole(path: str, data: bytes) -> bool:
    """Put `data` at `path` in one step where nothing is; False where something is."""
    whole = f"{path}.{uuid.uuid4().hex}.tmp"
    with _said_of(path):
        write_whole(whole, data)
    try:
        os.link(whole, path)  # one step, on network drives as well
    except FileExistsError:
        return False
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(whole)
    return True


def keep_alone(file: IO[bytes]) -> None:
    """Lock an open file until it is closed, or its process has ended; raise BlockingIOError where another has it.

    Where the file system knows no such locks nobody is kept away.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise


def is_at(path: str, file: IO[bytes]) -> bool:
    """Return whether an open file is the one at this path, no matter what was renamed since it was opened."""
    try:
        return os.path.samestat(os.lstat(path), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def delete_all(path: str) -> None:
    """Delete a file, a link, or a folder with all below it."""
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    else:
        os.unlink(path)
