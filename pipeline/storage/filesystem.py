"""Storage: the one way of opening, listing and writing a path, on this machine or in an object store (fsspec).

A path without `scheme://` is local and literal; `file:///a%20b` is a URI, in which %20 is a space. Keys of stores are
literal: nothing in this module takes a name for a pattern (`finding` does, where a user named an input). What fails for
a moment is tried again here, reads and writes alike. Keys and endpoints of object stores come from the environment, as
their own tools read it (for S3: AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_DEFAULT_REGION).
"""

import contextlib
import errno
import io
import os
import re
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, cast
from urllib.parse import quote, unquote_to_bytes

import fsspec
from fsspec import AbstractFileSystem

from pipeline.storage import local_files
from pipeline.storage.backoff import WAITS_S, with_retries
from pipeline.storage.store_errors import store_errors
from schemas.errors import Refused
from schemas.wording import credentials_in, lacks_bucket, one_line, redacted

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_LIKE_AN_ESCAPE = re.compile(r"\\(?=x(?:5c|[89a-f][0-9a-f]))")  # in a name, as `spelled` writes its other bytes
_PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs"}
# What stores say of an object's content, strongest first; a time where a store keeps no hash.
_VERSION_KEYS = ("ETag", "etag", "blob_id", "generation", "LastModified", "last_modified", "mtime", "created")
_DELETED_AT_ONCE = 1000  # keys in one request to S3
_DELETING = 16  # requests at once, where a store deletes key by key


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
        return with_retries(lambda: local_files.open_regular(path))
    filesystem, key = remote(url)

    def open_there() -> IO[bytes]:
        with store_errors(url):
            return cast(IO[bytes], filesystem.open(key, "rb", cache_type="none"))

    return cast(IO[bytes], _Steady(with_retries(open_there), url))


def read_bytes(url: str, limit: int | None = None, waits_s: Sequence[float] = WAITS_S) -> bytes:
    """Return the whole file, or its first `limit` bytes; only a regular file has any."""
    path = local_path(url)
    if path is None:
        filesystem, key = remote(url)
        return with_retries(lambda: _read_remote(url, filesystem, key, limit), waits_s)

    def read() -> bytes:
        with local_files.open_regular(path) as file:
            return file.read(-1 if limit is None else limit)

    return with_retries(read, waits_s)


def exists(url: str) -> bool:
    """Return whether a file or folder is there now; listings are never remembered."""
    path = local_path(url)
    if path is not None:
        return os.path.exists(path)
    filesystem, key = remote(url)

    def look() -> bool:
        filesystem.invalidate_cache()
        with store_errors(url):
            return bool(filesystem.exists(key))

    return with_retries(look)


def version_of(url: str) -> str | None:
    """Return what changes whenever the file does; None where its store does not say. Raises OSError."""
    path = local_path(url)
    if path is not None:
        now = with_retries(lambda: os.stat(path))
        return f"{now.st_dev} {now.st_ino} {now.st_size} {now.st_mtime_ns} {now.st_ctime_ns}"
    filesystem, key = remote(url)

    def look() -> str:
        filesystem.invalidate_cache()
        with store_errors(url):
            return _version(filesystem.info(key))

    return with_retries(look) or None


def list_folder(url: str, suffixes: tuple[str, ...] = ("",)) -> list[FileInfo]:
    """List the visible files below a folder of our own, sorted by url; [] where nothing is. Its name is no pattern.

    Only names that end in one of `suffixes` (lower case, any case matches). Links to folders are not followed.
    """
    path = local_path(url)
    if path is not None:
        files = with_retries(lambda: list(local_files.files_below(path)))
        found = [local_info(name, status) for name, status in files if name.lower().endswith(suffixes)]
    else:
        filesystem, key = remote(url)
        entries = with_retries(lambda: find_below(url, filesystem, key))
        found = [file_info(filesystem, entry) for entry in entries if _is_wanted(entry["name"], key, suffixes)]
    return sorted(found, key=lambda info: info.url)


def write_atomic(url: str, data: bytes, *, durable: bool = True) -> None:
    """Put `data` at `url`, over what was there; a reader sees all of the old file or all of the new one.

    `durable` False is for what nobody needs once the machine has died: a disk's sync takes up to some 10 ms.
    """
    path = local_path(url)
    if path is not None:
        with_retries(lambda: local_files.write_whole(path, data, durable=durable))
        return
    filesystem, key = _writable(url)

    def put() -> None:
        with store_errors(url):
            filesystem.pipe_file(key, data)  # one put, or a multipart upload that shows when it is complete

    with_retries(put)


def create_new(url: str, data: bytes) -> bool:
    """Put `data`, which must be like nobody else's, at `url` where nothing is; False where something is.

    Of many at once one succeeds. Stores without conditional writes only look before they write: there two may both
    succeed. A put that is tried again may find what it has put itself: hence nobody else's.
    """
    path = local_path(url)
    if path is not None:
        return with_retries(lambda: local_files.create_whole(path, data))
    filesystem, key = _writable(url)
    if exists(url):
        return False

    def put() -> bool:
        try:
            with store_errors(url):
                filesystem.pipe_file(key, data, mode="create")  # If-None-Match, or the like
        except FileExistsError:
            return _read_remote(url, filesystem, key, None) == data
        return True

    return with_retries(put)


def delete(url: str) -> None:
    """Delete a file, or a folder with all below it, and nothing else; what is not there is no error."""
    path = local_path(url)
    if path is not None:
        with contextlib.suppress(FileNotFoundError):
            with_retries(lambda: local_files.delete_all(path))
        return
    filesystem, key = _writable(url)
    with_retries(lambda: _delete_remote(url, filesystem, key))


def remove_exactly(url: str, content: bytes) -> bool:
    """Remove a local file that holds just `content`; return False where it holds something else or is not there.

    Of many processes at once one is told True: of one file one alone has the lock. Where a file system has none the
    file is renamed before it is looked at once more, and put back where it is another's.
    """
    path = local_path(url)
    assert path is not None, "stores cannot do this in one step"
    try:
        with local_files.open_regular(path) as file:
            local_files.keep_alone(file)
            is_there = file.read() == content and local_files.is_at(path, file)
            return is_there and _remove_exactly(path, content)
    except (FileNotFoundError, BlockingIOError):
        return False


def _remove_exactly(path: str, content: bytes) -> bool:
    aside = f"{path}.{uuid.uuid4().hex}.tmp"
    os.rename(path, aside)
    try:
        if read_bytes(aside) == content:
            return True
        with contextlib.suppress(FileExistsError):
            os.link(aside, path)
        return False
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(aside)


def join(url: str, *parts: str) -> str:
    """Return `url` with `parts` below it, one slash between each."""
    scheme = _SCHEME.match(url)
    is_bare = scheme is not None and not url[scheme.end() :].strip("/")  # `remote` refuses it, s3:/ is a folder here
    base = scheme[0] if scheme and is_bare else url.rstrip("/") if url.strip("/") else url[:1]
    return "/".join([base if base != "/" else "", *(part.strip("/") for part in parts if part.strip("/"))]) or "/"


def absolute(url: str) -> str:
    """Return the one spelling of `url` that listings use: no relative path, `~`, `file://` or slash at the end.

    A local path that is not UTF-8 is a `file://` URI, as texts hold no bytes.
    """
    path = local_path(url)
    if path is not None:
        return as_url(path)
    filesystem, key = remote(url)
    return str(filesystem.unstrip_protocol(key))


def real(url: str) -> str:
    """Return the one spelling of a path or URL, on this machine without links: two of one place are the same."""
    path = local_path(url)
    return absolute(url) if path is None else os.path.realpath(path)


def is_within(url: str, folder: str) -> bool:
    """Return whether one `real` spelling is another, or below it."""
    return f"{url}/".startswith(f"{folder.rstrip('/')}/")


def scheme_of(url: str) -> str:
    """Return the scheme in lower case; `file` for a path that names none."""
    match = _SCHEME.match(url)
    return match[1].lower() if match else "file"


def is_local(url: str) -> bool:
    """Return whether `url` is on this machine."""
    return scheme_of(url) in ("file", "local")


def local_path(url: str) -> str | None:
    """Return the absolute path on this machine, or None where `url` is not local."""
    if not is_local(url):
        return None
    if url[:6].lower() == "file:/":
        return os.path.abspath(_path_of_uri(url))
    scheme = _SCHEME.match(url)  # at the beginning alone: looked for further on, a long path takes minutes
    return os.path.abspath(os.path.expanduser(url[scheme.end() :] if scheme else url))


def as_url(path: str) -> str:
    """Return the url of an absolute local path: itself or, where it is not UTF-8, its `file://` URI."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return "file://" + quote(os.fsencode(path))
    return path


def spelled(url: str) -> str:
    r"""Return `url` as people read it: a local path as it is, but bytes that are not UTF-8 as in `caf\xe9.png`.

    No two paths are spelled alike: of a name that has such letters itself the backslash is written `\x5c`.
    """
    is_uri = url[:6].lower() == "file:/"
    if not is_uri and ("\\" not in url or not is_local(url)):
        return url
    path = _LIKE_AN_ESCAPE.sub(r"\\x5c", cast(str, local_path(url)) if is_uri else url)
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def remote(url: str) -> tuple[AbstractFileSystem, str]:
    """Return the filesystem of `url` and its path there; `::` is part of a key, never fsspec's chain of filesystems."""
    if (secret := credentials_in(url)) is not None:
        raise UnsupportedScheme(f"a URL must not hold {secret}, got {redacted(url)}: keys belong in the environment")
    if lacks_bucket(url):
        raise UnsupportedScheme(f"a URL of a store must name its bucket, got {url}")
    scheme = scheme_of(url)
    try:
        kind = fsspec.get_filesystem_class(scheme)
    except ImportError as error:
        package = _PACKAGES.get(scheme)
        advice = f"pip install {package}" if package else str(error)
        raise UnsupportedScheme(f"{scheme}:// needs a package that is not installed: {advice} ({url})") from error
    except ValueError as error:
        raise UnsupportedScheme(f"nothing here opens {scheme}:// paths, got {url}") from error
    try:
        filesystem, key = _made(kind, url)
    except (TypeError, ValueError, AttributeError, ImportError) as error:  # some need more than a URL can say
        reason = f"{scheme}:// paths cannot be opened with what is given here"
        raise UnsupportedScheme(f"{reason}, got {url}: {one_line(error)}") from error
    if url.rstrip("/").count("/") > 2 and key.rsplit("/", 1)[-1] != url.rstrip("/").rsplit("/", 1)[-1]:
        raise UnsupportedScheme(f"{scheme}:// paths cannot hold ? or # here, got {url}")
    return filesystem, key


def _made(kind: type[AbstractFileSystem], url: str) -> tuple[AbstractFileSystem, str]:
    options = kind._get_kwargs_from_urls(url)
    if scheme_of(url) in ("gs", "gcs"):
        options.pop("version_aware", None)  # it would take `#1` at the end of a name for a generation
    return kind(**options, use_listings_cache=False), kind._strip_protocol(url)


def find_below(url: str, filesystem: AbstractFileSystem, key: str) -> list[dict[str, Any]]:
    """Return what a store says of every file below `key`, which is no pattern."""
    filesystem.invalidate_cache()
    with store_errors(url):
        try:
            found = filesystem.find(key, detail=True).values()
        except FileNotFoundError as error:
            if hasattr(error.__cause__, "repo_type"):  # the hub has no such repository or revision
                raise
            return []
    prefix = key.rstrip("/") + "/"
    return [entry for entry in found if entry["name"].startswith(prefix)]


def file_info(filesystem: AbstractFileSystem, entry: dict[str, Any]) -> FileInfo:
    """Return one file of a store as it is listed."""
    url = str(filesystem.unstrip_protocol(entry["name"]))
    return FileInfo(url=url, size=entry["size"] or 0, version=_version(entry))


def _path_of_uri(url: str) -> str:
    """Return the path of a `file:` URI as RFC 8089 has it: on this machine, escapes taken back, whatever its bytes
    are."""
    rest = url[5:]
    if rest.startswith("//"):
        host, slash, path = rest[2:].partition("/")
        if not slash or host.lower() not in ("", "localhost"):
            raise UnsupportedScheme(f"a file:// URI must be file:///PATH, a path on this machine, got {url}")
        rest = slash + path
    return os.fsdecode(unquote_to_bytes(os.fsencode(rest)))


def _writable(url: str) -> tuple[AbstractFileSystem, str]:
    filesystem, key = remote(url)
    if "http" in filesystem.protocol:
        raise UnsupportedScheme(f"{url} cannot be written: use a local path or an object store")
    if "?versionId=" in key:  # s3fs would leave it out of the key
        raise UnsupportedScheme(f"{url} cannot be written: a path must not hold ?versionId=")
    return filesystem, key


def _read_remote(url: str, filesystem: AbstractFileSystem, key: str, limit: int | None) -> bytes:
    with store_errors(url):
        try:
            return cast(bytes, filesystem.cat_file(key, **({} if limit is None else {"start": 0, "end": limit})))
        except OSError as error:
            if error.errno == errno.EINVAL and filesystem.size(key) == 0:  # S3 knows no range of an empty object
                return b""
            raise


class _Steady(io.RawIOBase):
    """A store's file of which every read that fails for a moment is tried again, where it began."""

    def __init__(self, file: IO[bytes], url: str) -> None:
        super().__init__()
        self._file = file
        self._url = url

    def read(self, size: int = -1, /) -> bytes:
        offset = self._file.tell()

        def step() -> bytes:
            with store_errors(self._url):
                self._file.seek(offset)
                return self._file.read(size)

        return with_retries(step)

    def readall(self) -> bytes:
        return self.read()

    def readinto(self, buffer: "WriteableBuffer", /) -> int:
        view = memoryview(buffer).cast("B")
        data = self.read(len(view))
        view[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return self._file.seekable()

    def close(self) -> None:
        self._file.close()
        super().close()


def local_info(path: str, status: os.stat_result) -> FileInfo:
    """Return one file of this machine as it is listed."""
    return FileInfo(url=as_url(path), size=status.st_size, version=str(status.st_mtime_ns))


def _is_wanted(name: str, root: str, suffixes: tuple[str, ...]) -> bool:
    below = name[len(root) :].split("/")
    return name.lower().endswith(suffixes) and not any(part.startswith(".") for part in below)


def _version(entry: dict[str, object]) -> str:
    return next((str(entry[key]) for key in _VERSION_KEYS if entry.get(key)), "")


def _delete_remote(url: str, filesystem: AbstractFileSystem, key: str) -> None:
    """Delete key by key, as fsspec's own `rm` takes `*?[` in a key for a pattern."""
    with store_errors(url):
        if "/" in key.strip("/"):  # no bucket
            _remove(filesystem, key)
        below = [entry["name"] for entry in find_below(url, filesystem, key)]
        _delete_many(filesystem, below)


def _delete_many(filesystem: AbstractFileSystem, keys: list[str]) -> None:
    if keys and "s3" in filesystem.protocol:
        for start in range(0, len(keys), _DELETED_AT_ONCE):
            parts = [filesystem.split_path(key) for key in keys[start : start + _DELETED_AT_ONCE]]
            wanted = {"Objects": [{"Key": key} for _, key, _ in parts], "Quiet": True}
            answer = filesystem.call_s3("delete_objects", Bucket=parts[0][0], Delete=wanted)
            if answer.get("Errors"):
                raise OSError(f"{answer['Errors'][0]['Key']} cannot be deleted: {answer['Errors'][0].get('Code')}")
        return
    with ThreadPoolExecutor(_DELETING) as pool:
        list(pool.map(lambda key: _remove(filesystem, key), keys))


def _remove(filesystem: AbstractFileSystem, key: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        filesystem.rm_file(key)
