"""Destination: exported files written whole, at once, and resumed where a kill has stopped an export.

A file is written under a hidden name beside its own and renamed; in a store it is one object that shows when it is
complete. The hidden names are always the same, so that what a kill leaves is taken up, or written over, by the same
command. Nothing is written outside of the destination, whatever rows are called.
"""

import contextlib
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator
from hashlib import sha256
from typing import IO, Any

from pipeline.storage import filesystem as fs
from pipeline.storage.backoff import with_retries
from pipeline.storage.local_files import is_at, keep_alone, nearest
from pipeline.storage.store_errors import store_errors
from schemas.errors import Refused
from schemas.wording import credentials_in, holds_null, printable, redacted

MARK = ".llava-batch-export.json"  # in a folder that an export has begun and not ended
_LONGEST = 200  # bytes of a name that rows decide; file systems have 255
_UNSAFE = re.compile(r"[\x00-\x1f\x7f\\%]")

Part = Callable[[], Iterable[bytes]]  # what a part of a file is written from


def check_destination(destination: str, name: str = "DEST") -> None:
    """Raise Refused for a DEST, or what else it is called, that names nothing that can be written."""
    if not destination.strip():
        raise Refused(f"{name} must not be empty, got {destination!r}: is a variable of the shell unset?")
    if holds_null(destination):
        raise Refused(f"{name} must not hold a null character, got {destination!r}")
    if (secret := credentials_in(destination)) is not None:
        raise Refused(f"{name} {redacted(destination)} must not hold {secret}: keys belong in the environment")
    if fs.scheme_of(destination) in ("http", "https", "hf", "data"):
        raise Refused(f"{name} must be a path of this machine or of an object store, got {destination}")
    path = fs.local_path(destination)
    if path is not None:
        _check_writable(path, name)


def _check_writable(path: str, name: str) -> None:
    """Raise Refused where nothing can be written at a local path: what is above it is no folder, or not for us."""
    try:
        nearest(path)
        folder = nearest(path if os.path.isdir(path) else os.path.dirname(path))
    except OSError as error:  # a name too long, links that go round above it
        raise Refused(f"{name} must be a path that can be made, got {path}: {error.strerror}") from error
    if not os.path.isdir(folder):
        raise Refused(f"{name} must be below a folder, {folder} is none, got {path}")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise Refused(f"{name} must be in a folder that can be written, {folder} cannot be")


def check_apart(folder: str, destination: str) -> None:
    """Raise Refused where DEST is the run folder, or something in it."""
    if fs.is_within(fs.real(destination), fs.real(folder)):
        raise Refused(f"DEST must be outside of the run folder {folder}, got {destination}")


def write_file(destination: str, key: str, parts: Iterable[Part]) -> None:
    """Write one file of these parts, in order. A local file goes on after the last part that a kill has left whole.

    Two exports that have the same `key` write the same bytes.
    """
    if fs.exists(destination):
        raise exists(destination)
    path = fs.local_path(destination)
    if path is None:
        with whole_file(destination) as file:
            for part in parts:
                file.writelines(part())
        return
    os.makedirs(os.path.dirname(path), exist_ok=True)
    half = _half_of(path)
    journal = f"{half}.json"
    with _locked(half, destination) as file:
        if fs.exists(destination):  # by another process, since that was looked at first
            os.unlink(half)
            raise exists(destination)
        done, size = _resume_at(journal, key)
        if size > os.fstat(file.fileno()).st_size:  # the half was torn by more than a kill
            done = size = 0
        file.truncate(size)
        file.seek(size)
        for number, part in enumerate(parts):
            if number >= done:
                file.writelines(part())
                _flush(file)
                put_file(journal, json.dumps({"key": key, "parts": number + 1, "bytes": file.tell()}).encode())
        os.unlink(journal)
        os.replace(half, path)


def exists(destination: str) -> Refused:
    """Return the refusal of a DEST that is there already."""
    return Refused(f"DEST must not exist yet, {destination} does: remove it, or choose another")


@contextlib.contextmanager
def whole_file(url: str) -> Iterator[IO[bytes]]:
    """Open a file to write that is there at the end of the block, over what was there, and never half."""
    path = fs.local_path(url)
    if path is not None:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        half = _half_of(path)
        with _locked(half, url) as file:
            file.truncate(0)
            yield file
            _flush(file)
            os.replace(half, path)
        return
    filesystem, key = fs.remote(url)
    with tempfile.NamedTemporaryFile() as spool:
        yield spool
        spool.flush()

        def put() -> None:
            with store_errors(url):
                filesystem.put_file(spool.name, key)  # one put, or a multipart upload that shows when it is complete

        with_retries(put)


def put_file(url: str, data: bytes) -> None:
    """Write a small file, at once and whole."""
    if fs.local_path(url) is None:
        fs.write_atomic(url, data)
        return
    with whole_file(url) as file:
        file.write(data)


def begin_folder(destination: str, key: str) -> bool:
    """Take a folder for an export of this key; return whether one was begun there before.

    Raises Refused where it has something else in it.
    """
    mark = fs.join(destination, MARK)
    if fs.exists(mark):
        if fs.read_bytes(mark) == _mark(key):
            return True
        raise Refused(f"DEST {destination} holds another export that was not finished: remove it, or choose another")
    path = fs.local_path(destination)
    if path is not None:
        if os.path.lexists(path) and (not os.path.isdir(path) or set(os.listdir(path)) - {_half_of(MARK)}):
            raise exists(destination)
    elif fs.list_folder(destination):
        raise exists(destination)
    put_file(mark, _mark(key))
    return False


def end_folder(destination: str) -> None:
    """Say that a folder's export is complete."""
    fs.delete(fs.join(destination, MARK))


def safe_name(name: str) -> str:
    """Return a relative path made of a row's name that leads nowhere but below a folder.

    What could lead elsewhere, or is no name at all, is written as %XX; what is too long is cut and told apart by its
    hash.
    """
    parts = [_safe_part(part) for part in name.split("/") if part]
    return "/".join(parts) or "%"


def check_inside(root: str, path: str) -> None:
    """Raise Refused where a local path leads out of `root` over a link."""
    real = os.path.realpath(root)
    folder = os.path.realpath(os.path.dirname(path))
    if folder != real and not folder.startswith(real.rstrip("/") + "/"):
        raise Refused(
            f"DEST must hold all that is written, {printable(path)} is over a link outside of it, in "
            f"{printable(folder)}: export to another folder"
        )


def _safe_part(part: str) -> str:
    safe = _UNSAFE.sub(lambda found: f"%{ord(found[0]):02X}", part)
    if set(part) == {"."}:
        safe = "%2E" * len(part)
    if len(safe.encode()) > _LONGEST:
        digest = sha256(part.encode()).hexdigest()[:16]
        safe = safe.encode()[: _LONGEST - 17].decode("utf-8", "ignore") + "-" + digest
    return safe


def _mark(key: str) -> bytes:
    return (json.dumps({"export": key}) + "\n").encode()


def _half_of(path: str) -> str:
    folder, name = os.path.split(path)
    return os.path.join(folder, f".{name}.part")


@contextlib.contextmanager
def _locked(half: str, destination: str) -> Iterator[IO[bytes]]:
    """Open the half that a kill has left, or a new one, for this process alone; a link there is not followed."""
    if os.path.islink(half):
        os.unlink(half)
    descriptor = os.open(half, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
    with os.fdopen(descriptor, "r+b") as file:
        try:
            keep_alone(file)
            is_half = is_at(half, file)  # or another has made the whole of it since it was opened
        except BlockingIOError:
            is_half = False
        if not is_half:
            raise Refused(f"another process is exporting to {destination}: wait for it, or stop it")
        yield file


def _resume_at(journal: str, key: str) -> tuple[int, int]:
    """Return how many parts are in the half that was left, and their bytes; nothing of another export's."""
    try:
        found: dict[str, Any] = json.loads(fs.read_bytes(journal))
        return (int(found["parts"]), int(found["bytes"])) if found["key"] == key else (0, 0)
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return 0, 0


def _flush(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())
