"""Lance: tables that the library of that name reads, at one version, whose manifest stands for the table.

`folder` is the table at its newest version, `folder@3` at version 3. Deleted rows are not the table's.
"""

import importlib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from fsspec.config import conf

from pipeline.sources.columns import Columns
from pipeline.sources.convention import CONVENTION, Convention
from pipeline.sources.delta import split_version
from pipeline.sources.finding import Found
from pipeline.sources.parquet import halves
from pipeline.sources.source import FileRows, RowRange, Rows, Unread
from pipeline.sources.unreadable import why_unread
from pipeline.storage import filesystem as fs
from pipeline.storage.backoff import is_transient
from pipeline.storage.filesystem import FileInfo
from schemas.errors import Refused
from schemas.packages import install_line
from schemas.wording import one_line, printable

SUFFIX = ".manifest"  # of the files that tell a version's rows
_VERSIONS = "_versions"
_NAME = re.compile(r"(\d{1,20})\.manifest")
_COUNTED_DOWN = 2**64 - 1  # newer tables call a version by what is left to here, in 20 digits
_MANIFEST = re.compile(r"(?P<folder>.+)/_versions/(?P<name>\d{1,20})\.manifest", re.DOTALL)
_STORES = ("s3", "s3a")
_OTHER_STORES = ("gs", "gcs", "az", "abfs")  # where a table is found, and refused
_OPTIONS = {"endpoint_url": "aws_endpoint", "anon": "aws_skip_signature"}  # ours, and those of Lance's own client
_BATCH_ROWS = 1024
_PLACE_IN_CODE = re.compile(r",? ?/\S+\.rs:\d+.*", re.DOTALL)  # what Lance's errors end in
_KEY_ID = re.compile(r"(<AWSAccessKeyId>)[^<]*")  # with which S3 explains a refusal
_STATUS = re.compile(r"status(?: code:)? (\d{3})\b")
_BROKEN = (OSError, ValueError, pa.ArrowException)


@dataclass(frozen=True, slots=True)
class LanceTables:
    """Lance tables. A manifest is a file of the table's rows, in the order of its fragments."""

    name: str = "Lance"
    is_table: bool = True
    convention: Convention = CONVENTION

    def list(self, files: Sequence[FileInfo], limit: int | None) -> list[FileRows]:
        """Count the rows of all tables."""
        return [_count(file.url) for file in files]

    def read(self, row_ranges: Sequence[RowRange], columns: Columns) -> Iterator[Rows | Unread]:
        """Yield the rows; of a range that cannot be read as a whole, those of each part that can be."""
        for row_range in row_ranges:
            yield from _readable(row_range, columns)

    def read_ids(self, row_range: RowRange, columns: Columns) -> Iterator[Rows]:
        """Yield the ids batch by batch."""
        if columns.id is None:
            yield Rows(row_range=row_range, batch=pa.RecordBatch.from_pydict({}), ids=_made_ids(row_range))
            return
        yield from _rows_of(_opened(row_range.url), row_range, [columns.id])


def newest_lance(url: str) -> int | None:
    """Return the newest version of the table in a folder, None where there is no table, or where one is named."""
    return max(_manifests(url), default=None) if is_lance(url) else None


def find_lance(url: str) -> Found | None:
    """Return the manifest of the Lance table that is named, None where none is; raise Refused for one without it."""
    folder, version = url, newest_lance(url)
    if version is None:  # a folder of that very name comes first
        folder, version = split_version(url)
        if version is None or not is_lance(folder):
            return None
    if not fs.is_local(folder) and fs.scheme_of(folder) not in _STORES:
        raise Refused(f"--input {url}: a Lance table must be in a local folder or in s3://")
    if (manifest := _manifests(folder).get(version)) is None:
        raise Refused(f"--input {url}: the table has no version {version}: was it cleaned up?")
    with _refusing(folder):
        table = _opened(manifest.url)
        elsewhere = table.base_paths()
        num_bytes = sum(file.file_size_bytes or 0 for part in table.get_fragments() for file in part.data_files())
    if elsewhere:
        raise Refused(f"--input {url} must have all its files in its own folder, it has some elsewhere: deep_clone it")
    root = fs.absolute(folder).rpartition("/")[0]
    return Found(root=root, files=(replace(manifest, size=num_bytes),), is_table=True)


def is_lance(url: str) -> bool:
    """Return whether a folder is a table's own."""
    if not fs.is_local(url) and fs.scheme_of(url) not in (*_STORES, *_OTHER_STORES):
        return False
    try:
        return fs.exists(fs.join(url, _VERSIONS)) and bool(_manifests(url))
    except (OSError, ValueError):  # whoever lists it says what is wrong
        return False


def _manifests(folder: str) -> dict[int, FileInfo]:
    """Return the manifest of each version that a table has."""
    found: dict[int, FileInfo] = {}
    for file in fs.list_folder(fs.join(folder, _VERSIONS), (SUFFIX,)):
        if (name := _NAME.fullmatch(file.url.rsplit("/", 1)[1])) is not None:
            found[_version_of(name[1])] = file
    return found


def _version_of(name: str) -> int:
    return _COUNTED_DOWN - int(name) if len(name) == len(str(_COUNTED_DOWN)) else int(name)


def _parts_of(manifest: str) -> tuple[str, int]:
    """Return the folder and the version that a manifest's URL tells."""
    found = _MANIFEST.fullmatch(manifest)
    assert found is not None
    return found["folder"], _version_of(found["name"])


def _opened(manifest: str) -> Any:  # noqa: ANN401  a library that is not always there
    folder, version = _parts_of(manifest)
    try:
        library = importlib.import_module("lance")
    except ImportError as error:
        message = f"{printable(folder)} is a Lance table: to read it, {install_line('lance')}"
        raise Refused(message) from error
    where = fs.local_path(folder) or "s3://" + quote(folder.partition("://")[2])  # Lance decodes it
    options = _options(folder)
    try:
        return library.dataset(where, version=version, storage_options=options)
    except _BROKEN as error:
        raise as_known(error) from error


@contextmanager
def _refusing(folder: str) -> Iterator[None]:
    """Raise Refused for what Lance raises of a table; at types and bytes that it does not know its Rust code panics."""
    try:
        yield
    except Refused:
        raise
    except BaseException as error:
        if not isinstance(error, _BROKEN) and type(error).__name__ != "PanicException":
            raise
        raise Refused(f"{printable(folder)} cannot be read as a Lance table: {_said(error)}") from error


def _options(folder: str) -> dict[str, str] | None:
    """Return how the store is reached in the words of Lance's own client, which takes keys from the environment."""
    if fs.is_local(folder):
        return None
    given = dict(conf.get("s3", {}))
    if unknown := set(given) - _OPTIONS.keys():
        known = ", ".join(f"s3.{name}" for name in _OPTIONS)
        raise Refused(f"a Lance table is reached by {known} and the environment, not by s3.{min(unknown)}")
    options = {_OPTIONS[name]: str(value).lower() if value is True else str(value) for name, value in given.items()}
    return {**options, "allow_http": "true"}


def _said(error: BaseException) -> str:
    return _KEY_ID.sub(r"\1***", _PLACE_IN_CODE.sub("", one_line(error)))


def as_known(error: Exception) -> OSError:
    """Return what Lance raises as what Python would: it says most things in words alone."""
    said, status = _said(error), _STATUS.search(str(error))
    if status is not None and status[1] in ("401", "403"):
        return PermissionError(said)
    if "Not found" in said or (status is not None and status[1] == "404"):
        return FileNotFoundError(said)
    return ConnectionError(said) if _TRIED.search(said) else OSError(said)


_TRIED = re.compile(r"after \d+ retries|Error performing .* error sending request", re.IGNORECASE)


def _count(manifest: str) -> FileRows:
    folder, _ = _parts_of(manifest)
    with _refusing(folder):
        table = _opened(manifest)
        for column in table.schema:
            _check_column(column, folder)
        schema = table.scanner(blob_handling="all_binary").projected_schema.remove_metadata()
        return FileRows(url=manifest, num_rows=table.count_rows(), schema=schema)


def _check_column(column: pa.Field, folder: str) -> None:
    """Refuse blobs that may name files anywhere, which no limit of ours would be asked about."""
    if "lance.blob.v2" in str(column.type) or b"lance.blob.v2" in (column.metadata or {}).values():
        raise Refused(
            f"{printable(folder)}: column {column.name!r} has blobs that may lie in other files: write it as bytes"
        )


def _readable(row_range: RowRange, columns: Columns) -> list[Rows | Unread]:
    """Return the range's rows; where it cannot be read as a whole, those of its parts that can be."""
    try:
        table = _opened(row_range.url)
    except OSError as error:
        return [_unread(row_range, error, _made_ids(row_range))]
    return _parts_read(table, row_range, columns)


def _parts_read(table: Any, row_range: RowRange, columns: Columns) -> list[Rows | Unread]:  # noqa: ANN401
    """Return the range's rows; where it cannot be read as a whole, those of its halves, down to single rows."""
    try:
        return [*_rows_of(table, row_range, columns.used())]
    except _BROKEN as error:
        if isinstance(error, MemoryError):  # no row's fault
            raise
        known = as_known(error)
        parts = [row_range] if is_transient(known) else halves(row_range)
        if len(parts) > 1:
            return [rows for part in parts for rows in _parts_read(table, part, columns)]
        return [_unread(row_range, known, _ids_alone(table, row_range, columns))]


def _unread(row_range: RowRange, error: OSError, ids: pa.Array) -> Unread:
    return Unread(row_range=row_range, failure=why_unread(_named(row_range), error), ids=ids)


def _ids_alone(table: Any, row_range: RowRange, columns: Columns) -> pa.Array:  # noqa: ANN401
    """Return the ids of rows of which another column cannot be read, made ones where these cannot either."""
    if columns.id is None:
        return _made_ids(row_range)
    try:
        found = [rows.batch.column(0) for rows in _rows_of(table, row_range, [columns.id])]
        return pa.chunked_array(found).combine_chunks()
    except _BROKEN:
        return _made_ids(row_range)


def _rows_of(table: Any, row_range: RowRange, names: Sequence[str]) -> Iterator[Rows]:  # noqa: ANN401
    there = list(names) or table.schema.names[:1]
    scanner = table.scanner(
        columns=there,
        offset=row_range.start,
        limit=row_range.num_rows,
        scan_in_order=True,
        batch_size=min(_BATCH_ROWS, row_range.num_rows),
        blob_handling="all_binary",
    )
    done = 0
    for batch in scanner.to_batches():
        part = row_range.part(done, batch.num_rows)
        yield Rows(row_range=_named(part), batch=batch.select(list(names)), ids=_made_ids(part))
        done += batch.num_rows
    if done < row_range.num_rows:
        there_now = f"it has {row_range.start + done}"
        raise OSError(f"the table must have its rows as when listed, {there_now}")


def _named(row_range: RowRange) -> RowRange:
    """Return the range under its table's own name, beside which relative paths begin."""
    return replace(row_range, url=_parts_of(row_range.url)[0])


def _made_ids(row_range: RowRange) -> pa.Array:
    """Return ids of the table's name, its version and the row's number in it."""
    folder, version = _parts_of(row_range.name if "/" in row_range.name else row_range.url)
    numbers = np.arange(row_range.start, row_range.start + row_range.num_rows)
    return pc.binary_join_element_wise(f"{folder}@{version}", pa.array(numbers).cast(pa.string()), ":")
