"""Row ranges: consecutive rows of a Parquet file, read from wherever it is."""

import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import IO, Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import types

from pipeline.sources.arrow_types import is_text
from pipeline.storage import filesystem as fs

_MAGIC = b"PAR1"
_STREAM_BUFFER_BYTES = 8 * 2**20
_BATCH_BYTES = 512 * 2**20
_BATCH_ROWS = 2**16


_Source: TypeAlias = tuple[IO[bytes] | str, pq.FileMetaData, list[str]]  # an open file or its URL, a footer, columns


@dataclass(frozen=True, slots=True, kw_only=True)
class RowRange:
    """Some rows of a Parquet file; `start` is the position of the first in it."""

    url: str
    name: str
    start: int
    num_rows: int

    def __str__(self) -> str:
        return f"rows {self.start} to {self.start + self.num_rows - 1} of {self.url}"


def read_range(
    row_range: RowRange, names: list[str], whole_read_bytes: int, as_stored: Collection[str] = ()
) -> Iterator[pa.RecordBatch]:
    """Yield these columns of the range's rows, of fewer rows where its file has lost some.

    Row groups of more than `whole_read_bytes` are streamed page by page. Columns `as_stored` come as Parquet has them,
    whatever Arrow type their writer noted: dictionaries of texts as texts, which are not looked at while they are read.
    """
    with fs.open_url(row_range.url) as file:
        metadata = pq.read_metadata(file)
        groups, skip = _row_groups(metadata, row_range.start, row_range.num_rows)
        whole = max((metadata.row_group(group).total_byte_size for group in groups), default=0) <= whole_read_bytes
        options = {"pre_buffer": True} if whole else {"pre_buffer": False, "buffer_size": _STREAM_BUFFER_BYTES}
        schema = metadata.schema.to_arrow_schema()
        missing = set(names) - set(schema.names)
        if missing:
            raise OSError(f"the file must have a column {min(missing)!r} as when listed, it has none")
        left = row_range.num_rows
        at_once = _rows_at_once(metadata, groups, row_range.num_rows)
        wanted: list[_Source] = [(file, metadata, [name for name in names if name not in as_stored])]
        if as_stored:
            wanted.append((row_range.url, _without_arrow_types(file), [name for name in names if name in as_stored]))
        for batch in _batches(wanted, options, at_once, groups):
            part = batch.slice(skip, left)
            skip -= min(skip, batch.num_rows)
            left -= part.num_rows
            if part.num_rows:
                yield part.select(names)
            if not left:
                return


def dictionaries_of(row_range: RowRange, names: Collection[str]) -> frozenset[str]:
    """Return those of the columns that are dictionaries of texts; raises OSError and ArrowException."""
    with fs.open_url(row_range.url) as file:
        schema = pq.read_schema(file)
    wanted = (field for field in schema if field.name in names and types.is_dictionary(field.type))
    return frozenset(field.name for field in wanted if is_text(field.type))


def _batches(
    wanted: Sequence[tuple[IO[bytes] | str, pq.FileMetaData, list[str]]],
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
    """The range as two; itself where it is one row."""
    half = row_range.num_rows // 2
    rest = replace(row_range, start=row_range.start + half, num_rows=row_range.num_rows - half)
    return [replace(row_range, num_rows=half), rest] if half else [row_range]


def by_row_group(row_range: RowRange) -> list[RowRange]:
    """The range cut where its file's row groups end; whole where the file does not tell, or is another one by now."""
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


def _rows_at_once(metadata: pq.FileMetaData, groups: list[int], most: int) -> int:
    """Rows of a batch: lists of more than 2 GB in one cannot be decoded."""
    sizes = [(metadata.row_group(group).total_byte_size, metadata.row_group(group).num_rows) for group in groups]
    largest = max((size // max(1, rows) for size, rows in sizes), default=0)
    return max(1, min(most, _BATCH_ROWS, _BATCH_BYTES // max(1, largest)))


def _row_groups(metadata: pq.FileMetaData, start: int, num_rows: int) -> tuple[list[int], int]:
    """The row groups that hold these rows, and how many rows of the first come before them."""
    ends = np.cumsum([metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)], dtype=np.int64)
    first, last = np.searchsorted(ends, [start, start + num_rows - 1], side="right")
    before = int(ends[first - 1]) if first else 0
    return list(range(first, min(last + 1, len(ends)))), start - before
