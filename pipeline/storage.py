"""Storage: the one way of opening, listing and writing a path, on this machine or in an object store (fsspec).

A path without `scheme://` is local. Keys and endpoints of object stores come from the environment, as their own tools
read it (for S3: AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_DEFAULT_REGION).
"""

import contextlib
import errno
import os
import re
import shutil
import stat
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from operator import attrgetter
from typing import IO, cast

import fsspec
from fsspec import AbstractFileSystem

from schemas.errors import Refused

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs"}
_GLOB = re.compile(r"[*?[]")
# What stores say of an object's content, strongest first; a time where a store keeps no hash.
_VERSION_KEYS = ("ETag", "etag", "blob_id", "generation", "LastModified", "last_modified", "mtime", "created")


class UnsupportedScheme(Refused):
    """Nothing installed here opens this kind of path."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileInfo:
    """One listed file. `version` changes when the content does: an etag, or the time of the last change."""

    url: str
    size: int  # bytes
    version: str


def open_url(url: str) -> IO[bytes]:
    """Open for reading and seeking. Reads go to the store as they are asked for, nothing is read ahead."""
    path = local_path(url)
    if path is not None:
        return open(path, "rb")
    filesystem, key = _remote(url)
    with store_errors(url):
        return cast(IO[bytes], filesystem.open(key, "rb", cache_type="none"))


def read_bytes(url: str, limit: int | None = None) -> bytes:
    """The whole file, or its first `limit` bytes."""
    path = local_path(url)
    if path is not None:
        if not stat.S_ISREG(os.stat(path).st_mode):  # opening a pipe would wait for ever
            raise OSError(f"{path} is not a regular file")
        with open(path, "rb") as file:
            return file.read(-1 if limit is None else limit)
    filesystem, key = _remote(url)
    with store_errors(url):
        try:
            return cast(bytes, filesystem.cat_file(key, **({} if limit is None else {"start": 0, "end": limit})))
        except OSError as error:
            if error.errno == errno.EINVAL and filesystem.size(key) == 0:  # S3 knows no range of an empty object
                return b""
            raise


def exists(url: str) -> bool:
    """Whether a file or folder is there now; listings are never remembered."""
    path = local_path(url)
    if path is not None:
        return os.path.exists(path)
    filesystem, key = _remote(url)
    filesystem.invalidate_cache()
    with store_errors(url):
        return bool(filesystem.exists(key))


def list_files(url: str, suffixes: tuple[str, ...]) -> list[FileInfo]:
    """The files of a folder (with all below it), of a glob, or the one named, sorted by url; [] where nothing is.

    Only names that end in one of `suffixes` (lower case, any case matches). Names starting with a dot are hidden.
    """
    path = local_path(url)
    if path is not None:
        found = _list_local(path, suffixes)
    else:
        with store_errors(url):
            found = list(_list_remote(*_remote(url), suffixes))
    unique = {info.url: info for info in found}  # `**` matches a folder and what is in it
    return sorted(unique.values(), key=attrgetter("url"))


def write_atomic(url: str, data: bytes) -> None:
    """Put `data` at `url`, over what was there; a reader sees all of the old file or all of the new one."""
    path = local_path(url)
    if path is not None:
        _write_local(path, data)
        return
    filesystem, key = _remote(url)
    if "http" in filesystem.protocol:
        raise UnsupportedScheme(f"{url} cannot be written: use a local path or an object store")
    with store_errors(url):
        filesystem.pipe_file(key, data)  # one put, or a multipart upload that shows when it is complete


def create_new(url: str, data: bytes) -> bool:
    """Put `data` at `url`, whole, where nothing is; False where something is. Of many at once one succeeds.

    Stores without conditional writes only look before they write: there two may both succeed.
    """
    path = local_path(url)
    if path is not None:
        return _create_local(path, data)
    filesystem, key = _remote(url)
    with store_errors(url), contextlib.suppress(FileExistsError):
        if not exists(url):
            filesystem.pipe_file(key, data, mode="create")  # If-None-Match, or the like
            return True
    return False


def delete(url: str) -> None:
    """Delete a file, or a folder with all below it; what is not there is no error."""
    path = local_path(url)
    if path is not None:
        with contextlib.suppress(FileNotFoundError):
            _delete_local(path)
        return
    filesystem, key = _remote(url)
    filesystem.invalidate_cache()
    with store_errors(url), contextlib.suppress(FileNotFoundError):
        filesystem.rm(key, recursive=True)


def remove_exactly(url: str, content: bytes) -> bool:
    """Remove a local file that holds just `content`; return False where it holds something else or is not there.

    Of many processes at once one is told True: the file is renamed before it is looked at, and put back where it is
    another's.
    """
    path = local_path(url)
    assert path is not None, "stores cannot do this in one step"
    aside = f"{path}.{uuid.uuid4().hex}.tmp"
    try:
        os.rename(path, aside)
    except FileNotFoundError:
        return False
    try:
        if read_bytes(aside) == content:
            return True
        with contextlib.suppress(FileExistsError):
            os.link(aside, path)
        return False
    finally:
        os.unlink(aside)


def join(url: str, *parts: str) -> str:
    """`url` with `parts` below it, one slash between each."""
    base = url.rstrip("/") if url.strip("/") else url[:1]
    return "/".join([base if base != "/" else "", *(part.strip("/") for part in parts if part.strip("/"))]) or "/"


def absolute(url: str) -> str:
    """The one spelling of `url` that listings use: no relative path, `~`, `file://` or slash at the end."""
    path = local_path(url)
    if path is not None:
        return path
    filesystem, key = _remote(url)
    return str(filesystem.unstrip_protocol(key))


def has_glob(url: str) -> bool:
    """Whether `url` holds one of `*?[`."""
    return _GLOB.search(url) is not None


def scheme_of(url: str) -> str:
    """The scheme in lower case; `file` for a path that names none."""
    match = _SCHEME.match(url)
    return match[1].lower() if match else "file"


def local_path(url: str) -> str | None:
    """The absolute path on this machine, or None where `url` is not local."""
    if scheme_of(url) not in ("file", "local"):
        return None
    return os.path.abspath(os.path.expanduser(_SCHEME.sub("", url, count=1)))


def _remote(url: str) -> tuple[AbstractFileSystem, str]:
    """The filesystem of `url` and its path there; `::` is part of a key, never fsspec's chain of filesystems."""
    scheme = scheme_of(url)
    try:
        kind = fsspec.get_filesystem_class(scheme)
    except ImportError as error:
        package = _PACKAGES.get(scheme)
        advice = f"pip install {package}" if package else str(error)
        raise UnsupportedScheme(f"{scheme}:// needs a package that is not installed: {advice} ({url})") from error
    except ValueError as error:
        raise UnsupportedScheme(f"nothing here opens {scheme}:// paths, got {url}") from error
    options = kind._get_kwargs_from_urls(url)
    return kind(**options, use_listings_cache=False), kind._strip_protocol(url)


@contextlib.contextmanager
def store_errors(url: str) -> Iterator[None]:
    """Turn what the stores' clients raise besides OSError (no keys, no such host) into OSError."""
    try:
        yield
    except _client_errors() as error:
        if isinstance(error, OSError):
            raise
        raise OSError(f"{url}: {type(error).__name__}: {error}") from error


def _client_errors() -> tuple[type[Exception], ...]:
    """The base errors of those clients that are loaded; one that is not cannot have raised."""
    bases = (
        ("botocore.exceptions", "BotoCoreError"),
        ("botocore.exceptions", "ClientError"),
        ("aiohttp", "ClientError"),
        *((client, "HTTPError") for client in ("httpx", "httpx2")),  # of one huggingface_hub or another
        ("google.auth.exceptions", "GoogleAuthError"),
    )
    return tuple(getattr(sys.modules[module], name) for module, name in bases if module in sys.modules)


def _list_local(path: str, suffixes: tuple[str, ...]) -> list[FileInfo]:
    if has_glob(path) and not os.path.lexists(path):
        # the two sorts of match: a file is taken as it is, a folder with all below it
        matches = fsspec.filesystem("file").glob(path)
        return [info for match in matches for info in _list_local(match, suffixes)]
    if os.path.isdir(path):
        return list(_walk(path, suffixes))
    if os.path.isfile(path) and path.lower().endswith(suffixes):
        return [_local_info(path, os.stat(path))]
    return []


def _walk(folder: str, suffixes: tuple[str, ...]) -> Iterator[FileInfo]:
    """Every visible file below `folder`. Links to files are followed; links to folders are not, they may go round."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(entry.path, suffixes)
            elif entry.name.lower().endswith(suffixes) and entry.is_file():
                yield _local_info(entry.path, entry.stat())


def _local_info(path: str, status: os.stat_result) -> FileInfo:
    return FileInfo(url=path, size=status.st_size, version=str(status.st_mtime_ns))


def _list_remote(filesystem: AbstractFileSystem, key: str, suffixes: tuple[str, ...]) -> Iterator[FileInfo]:
    filesystem.invalidate_cache()
    if has_glob(key) and not filesystem.exists(key):
        matches = list(filesystem.glob(key, detail=True).values())
    else:
        try:
            matches = [filesystem.info(key)]
        except FileNotFoundError as error:
            if hasattr(error.__cause__, "repo_type"):  # the hub has no such repository or revision
                raise
            return
    for match in matches:
        is_folder = match["type"] == "directory"
        entries = filesystem.find(match["name"], detail=True).values() if is_folder else [match]
        root = match["name"].rstrip("/") if is_folder else os.path.dirname(match["name"])
        for entry in entries:
            if _is_wanted(entry["name"], root, suffixes):
                url = str(filesystem.unstrip_protocol(entry["name"]))
                yield FileInfo(url=url, size=entry["size"] or 0, version=_version(entry))


def _is_wanted(name: str, root: str, suffixes: tuple[str, ...]) -> bool:
    below = name[len(root) :].split("/")
    return name.lower().endswith(suffixes) and not any(part.startswith(".") for part in below)


def _version(entry: dict[str, object]) -> str:
    return next((str(entry[key]) for key in _VERSION_KEYS if entry.get(key)), "")


def _write_local(path: str, data: bytes) -> None:
    folder, name = os.path.split(path)
    os.makedirs(folder, exist_ok=True)
    half = os.path.join(folder, f".{name}.{uuid.uuid4().hex}.tmp")  # hidden from listings
    try:
        with open(half, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(half, path)
    except BaseException:  # an interrupt as well must not leave half a file behind
        with contextlib.suppress(FileNotFoundError):
            os.unlink(half)
        raise


def _create_local(path: str, data: bytes) -> bool:
    whole = f"{path}.{uuid.uuid4().hex}.tmp"
    _write_local(whole, data)
    try:
        os.link(whole, path)  # one step, on network drives as well
    except FileExistsError:
        return False
    finally:
        os.unlink(whole)
    return True


def _delete_local(path: str) -> None:
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    else:
        os.unlink(path)
