"""Parquet: files of which ranges of rows are read, from wherever they are; what cannot be read costs its own rows."""

import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from typing import IO, Any, TypeAlias
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import types

from pipeline.sources.arrow_types import is_text, plain_type
from pipeline.sources.columns import Columns
from pipeline.sources.convention import CONVENTION, Convention
from pipeline.sources.open_files import OpenFiles, reading_options, rows_at_once, stored
from pipeline.sources.source import FileRows, RowRange, Rows, Unread
from pipeline.sources.unreadable import is_no_text, why_unread
from pipeline.storage import filesystem as fs
from pipeline.storage.backoff import is_transient
from pipeline.storage.filesystem import FileInfo
from schemas.errors import Refused
from schemas.wording import one_line, printable

PARQUET_SUFFIXES = (".parquet", ".parq", ".pq")
_WHOLE_READ_BYTES = 256 * 2**20
_MAGIC = b"PAR1"
_FOOTERS_AT_ONCE = 16  # they wait for storage, not for the CPU
_FOOTERS_AHEAD = 256  # read before it is looked whether --limit has its rows

_File: TypeAlias = tuple[IO[bytes] | str, pq.FileMetaData, list[str]]  # an open file or its URL, a footer, columns


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table in a folder whose columns its log says: a file that was written before one was added has it null."""

    root: str
    schema: pa.Schema


@dataclass(frozen=True, slots=True)
class Parquet:
    """Parquet files. Row groups of more than `whole_read_bytes` are streamed page by page: a unit of a few rows must
    not cost all their memory."""

    whole_read_bytes: int = _WHOLE_READ_BYTES
    name: str = "parquet"
    is_table: bool = True
    convention: Convention = CONVENTION
    tables: tuple[Table, ...] = ()
    files: OpenFiles | None = field(default=None, compare=False)  # that a worker reads on; None: each range by itself

    def using(self, files: OpenFiles) -> "Parquet":
        """Return the same format, read from files that stay open."""
        return replace(self, files=files)

    def list(self, files: Sequence[FileInfo], limit: int | None) -> list[FileRows]:
        """Read the footers of all files, or of the first ones that have `limit` rows together."""
        footers: list[FileRows] = []
        with ThreadPoolExecutor(_FOOTERS_AT_ONCE) as pool:
            for start in range(0, len(files), _FOOTERS_AHEAD):
                footers += pool.map(partial(_read_footer, self.tables), files[start : start + _FOOTERS_AHEAD])
                if limit is not None and sum(footer.num_rows for footer in footers) >= limit:
                    break
        return footers

    def read(self, row_ranges: Sequence[RowRange], columns: Columns) -> Iterator[Rows | Unread]:
        """Yield the rows; of a range that cannot be read as a whole, those of each row group that can be."""
        reading = _Reading(
            columns=columns, whole_read_bytes=self.whole_read_bytes, tables=self.tables, files=self.files
        )
        for row_range in row_ranges:
            yield from reading.rows_of(row_range)

    def read_ids(self, row_range: RowRange, columns: Columns) -> Iterator[Rows]:
        """Yield the ids batch by batch."""
        if columns.id is None:
            yield Rows(row_range=row_range, batch=pa.RecordBatch.from_pydict({}))
            return
        done = 0
        for batch in read_range(row_range, [columns.id], self.whole_read_bytes, (), self.tables):
            yield Rows(row_range=row_range.part(done, batch.num_rows), batch=batch)
            done += batch.num_rows


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reading:
    """Reads ranges, and the parts of one that cannot be read as a whole."""

    columns: Columns
    whole_read_bytes: int
    tables: tuple[Table, ...] = ()
    files: OpenFiles | None = None
    as_stored: frozenset[str] = frozenset()  # columns whose Arrow type is not looked at, see `read_range`

    def rows_of(self, row_range: RowRange) -> list[Rows | Unread]:
        """Return the range's rows; where it cannot be read as a whole, those of its parts, and what is left unread."""
        try:
            return [*self._read(row_range)]
        except (OSError, pa.ArrowException) as error:
            if isinstance(error, MemoryError):  # no row's fault
                raise
            dictionaries = self._dictionaries(row_range) if is_no_text(error) else frozenset()
            if dictionaries > self.as_stored:
                return replace(self, as_stored=dictionaries).rows_of(row_range)
            parts = [row_range] if is_transient(error) else _parts(row_range, error)
            if len(parts) > 1:
                return [rows for part in parts for rows in self.rows_of(part)]
            return [Unread(row_range=row_range, failure=why_unread(row_range, error), ids=self._ids_alone(row_range))]

    def _dictionaries(self, row_range: RowRange) -> frozenset[str]:
        """Return the columns of which Arrow decodes the texts while it reads a row group: a bad one costs them all."""
        try:
            return dictionaries_of(row_range, self.columns.used())
        except (OSError, pa.ArrowException):
            return frozenset()

    def _read(self, row_range: RowRange) -> list[Rows]:
        """Return all of the range, in as many batches as Arrow likes."""
        found: list[Rows] = []
        done = 0
        for batch in self._batches(row_range):
            found.append(Rows(row_range=row_range.part(done, batch.num_rows), batch=batch))
            done += batch.num_rows
        if done < row_range.num_rows:
            there = f"it has {row_range.start + done}"
            raise OSError(
                f"the file must have at least {row_range.start + row_range.num_rows} rows as when listed, {there}"
            )
        return found

    def _batches(self, row_range: RowRange) -> Iterable[pa.RecordBatch]:
        names = self.columns.used()
        if self.files is not None and not self.as_stored:
            with suppress(OSError, pa.ArrowException):  # which reading the range by itself will say, if it is so
                if (batches := read_on(self.files, row_range, names, self.tables)) is not None:
                    return batches
        return read_range(row_range, names, self.whole_read_bytes, self.as_stored, self.tables)

    def _ids_alone(self, row_range: RowRange) -> pa.Array | None:
        """Return the id column of rows of which another column cannot be read; None where it cannot either."""
        if self.columns.id is None:
            return None
        try:
            alone = replace(self, columns=self.columns.ids_alone(), files=None)._read(row_range)
            return pa.chunked_array([rows.batch.column(0) for rows in alone]).combine_chunks()
        except (OSError, pa.ArrowException):
            return None


def _read_footer(tables: Sequence[Table], file: FileInfo) -> FileRows:
    try:
        with fs.open_url(file.url) as opened, pq.ParquetFile(opened) as parquet:
            schema, metadata = parquet.schema_arrow, parquet.metadata
            more = _constants(file.url, schema, tables)
            return FileRows(
                url=file.url,
                num_rows=metadata.num_rows,
                schema=pa.schema([*schema, *(pa.field(name, one.type) for name, one in more.items())]),
                disputed=_disputed(file.url, metadata, schema),
            )
    except (OSError, pa.ArrowException) as error:
        why = one_line(error)
        raise Refused(f"{printable(file.url)} must be a Parquet file, its footer cannot be read: {why}") from error


def _parts(row_range: RowRange, error: OSError | pa.ArrowException) -> list[RowRange]:
    """Return what is tried by itself: row groups, and fewer rows where Arrow cannot decode so many at once."""
    too_many = isinstance(error, pa.ArrowNotImplementedError) and "chunked array" in str(error)
    return halves(row_range) if too_many else by_row_group(row_range)


def read_on(
    files: OpenFiles, row_range: RowRange, names: list[str], tables: Sequence[Table] = ()
) -> list[pa.RecordBatch] | None:
    """Return these columns of the range's rows as `read_range` yields them, from a file that stays open; None where
    that would be no gain."""
    found = files.read(row_range, names)
    if found is None:
        return None
    schema, batches = found
    constants = _constants(row_range.url, schema, tables)
    if not set(names) <= {*schema.names, *constants}:
        return None
    return [_with_constants(batch, constants).select(names) for batch in batches]


def read_range(
    row_range: RowRange,
    names: list[str],
    whole_read_bytes: int,
    as_stored: Collection[str] = (),
    tables: Sequence[Table] = (),
) -> Iterator[pa.RecordBatch]:
    """Yield these columns of the range's rows, of fewer rows where its file has lost some.

    Row groups of more than `whole_read_bytes` are streamed page by page. Columns `as_stored` come as Parquet has them,
    whatever Arrow type their writer noted: dictionaries of texts as texts, which are not looked at while they are read.
    """
    with fs.open_url(row_range.url) as file:
        metadata = pq.read_metadata(file)
        groups, skip = _row_groups(metadata, row_range.start, row_range.num_rows)
        whole = max((metadata.row_group(group).total_byte_size for group in groups), default=0) <= whole_read_bytes
        options = reading_options(is_whole=whole)
        schema = metadata.schema.to_arrow_schema()
        constants = _constants(row_range.url, schema, tables)
        missing = set(names) - set(schema.names) - set(constants)
        if missing:
            raise OSError(f"the file must have a column {min(missing)!r} as when listed, it has none")
        left = row_range.num_rows
        at_once = rows_at_once(metadata, groups, row_range.num_rows)
        there = stored(names, schema)
        wanted: list[_File] = [(file, metadata, [name for name in there if name not in as_stored])]
        if as_stored:
            wanted.append((row_range.url, _without_arrow_types(file), [name for name in there if name in as_stored]))
        for batch in _batches(wanted, options, at_once, groups):
            part = batch.slice(skip, left)
            skip -= min(skip, batch.num_rows)
            left -= part.num_rows
            if part.num_rows:
                yield _with_constants(part, constants).select(names)
            if not left:
                return


def _constants(url: str, schema: pa.Schema, tables: Sequence[Table]) -> dict[str, pa.Scalar]:
    """Return the columns that a file has not and all its rows have all the same: of its folders, and of its table."""
    states = {name: pa.scalar(value, pa.string()) for name, value in partitions_of(url).items()}
    added = {
        field.name: pa.scalar(None, field.type)
        for table in tables
        if url.startswith(f"{table.root}/")
        for field in table.schema
        if field.nullable
    }
    return {name: value for name, value in (added | states).items() if name not in schema.names}


def partitions_of(url: str) -> dict[str, str | None]:
    """Return the columns that the folders above a file state, as Hive and Spark write them: `year=2026/`."""
    found = (_PARTITION.fullmatch(part) for part in fs.spelled(url).split("/")[:-1])
    return {part[1]: None if part[2] == _NO_VALUE else _unquoted(part[2]) for part in found if part}


def _unquoted(value: str) -> str:
    """Return the value without its escapes; as it is where they are those of no text."""
    try:
        return unquote(value, errors="strict")
    except UnicodeDecodeError:
        return value


_PARTITION = re.compile(r"([A-Za-z_]\w*)=(.*)")
_NO_VALUE = "__HIVE_DEFAULT_PARTITION__"


def _disputed(url: str, metadata: pq.FileMetaData, schema: pa.Schema) -> dict[str, str]:
    """Return the columns that a file has and its folders state as well, where these do not say the same."""
    states = partitions_of(url)
    return {
        field.name: f"must be {printable(states[field.name] or 'null')} in every row, as its folder says, and the "
        "statistics in its footer do not say so: rename the folder or the column"
        for field in schema
        if field.name in states and not _is_always(metadata, field, states[field.name])
    }


def _is_always(metadata: pq.FileMetaData, field: pa.Field, value: str | None) -> bool:
    """Return whether a file's statistics say that a column has this value in every row."""
    try:
        wanted = pa.scalar(value, pa.string()).cast(plain_type(field.type)).as_py()
    except pa.ArrowException:  # a text that is no value of the type, or a type that no text is
        return False
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        chunks = (group.column(number) for number in range(group.num_columns))
        told = next((chunk.statistics for chunk in chunks if chunk.path_in_schema == field.name), None)
        if told is None or told.null_count != (group.num_rows if value is None else 0):
            return False
        if value is not None and not told.min == told.max == wanted:
            return False
    return True


def _with_constants(batch: pa.RecordBatch, constants: Mapping[str, pa.Scalar]) -> pa.RecordBatch:
    for name, value in constants.items():
        batch = batch.append_column(name, pa.repeat(value, batch.num_rows))
    return batch


def dictionaries_of(row_range: RowRange, names: Collection[str]) -> frozenset[str]:
    """Return those of the columns that have dictionaries of texts, at any depth; raises OSError and ArrowException."""
    with fs.open_url(row_range.url) as file:
        schema = pq.read_schema(file)
    return frozenset(field.name for field in schema if field.name in names and _has_dictionary(field.type))


def _has_dictionary(type: pa.DataType) -> bool:
    if types.is_dictionary(type):
        return is_text(type)
    return any(_has_dictionary(type.field(number).type) for number in range(type.num_fields))


def _batches(
    wanted: Sequence[_File],
    options: dict[str, Any],
    size: int,
    groups: list[int],
) -> Iterator[pa.RecordBatch]:
    """Yield the same rows of these columns of a file, read under these footers, side by side."""
    with ExitStack() as stack:
        readers = []
        for source, footer, names in wanted:
            file = stack.enter_context(fs.open_url(source)) if isinstance(source, str) else source
            parquet = stack.enter_context(pq.ParquetFile(file, metadata=footer, **options))
            readers.append(parquet.iter_batches(size, row_groups=groups, columns=names, use_threads=False))
        for batches in zip(*readers, strict=True):
            yield pa.RecordBatch.from_pydict({name: batch[name] for batch in batches for name in batch.schema.names})


def _without_arrow_types(file: IO[bytes]) -> pq.FileMetaData:
    """Return a file's footer without the Arrow schema that its writer noted beside Parquet's: the key is renamed."""
    file.seek(-8, os.SEEK_END)  # the footer's length and the magic
    end = file.read(8)
    file.seek(-8 - int.from_bytes(end[:4], "little"), os.SEEK_END)
    footer = file.read().replace(b"ARROW:schema", b"arrow:schema")
    return pq.read_metadata(pa.BufferReader(_MAGIC + footer))


def halves(row_range: RowRange) -> list[RowRange]:
    """Return the range as two; itself where it is one row."""
    half = row_range.num_rows // 2
    rest = replace(row_range, start=row_range.start + half, num_rows=row_range.num_rows - half)
    return [replace(row_range, num_rows=half), rest] if half else [row_range]


def by_row_group(row_range: RowRange) -> list[RowRange]:
    """Cut the range where its file's row groups end; not where the file does not tell, or is another one by now."""
    try:
        with fs.open_url(row_range.url) as file:
            metadata = pq.read_metadata(file)
    except (OSError, pa.ArrowException):
        return [row_range]
    ends = np.cumsum([metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)], dtype=np.int64)
    stop = row_range.start + row_range.num_rows
    if not len(ends) or stop > ends[-1]:
        return [row_range]
    cuts = [row_range.start, *ends[(ends > row_range.start) & (ends < stop)].tolist(), stop]
    return [replace(row_range, start=start, num_rows=end - start) for start, end in pairwise(cuts)]


def _row_groups(metadata: pq.FileMetaData, start: int, num_rows: int) -> tuple[list[int], int]:
    """Return the row groups that hold these rows, and how many rows of the first come before them."""
    ends = np.cumsum([metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)], dtype=np.int64)
    first, last = np.searchsorted(ends, [start, start + num_rows - 1], side="right")
    before = int(ends[first - 1]) if first else 0
    return list(range(first, min(last + 1, len(ends)))), start - before
