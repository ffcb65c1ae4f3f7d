"""Open files: Parquet files that stay open from one unit to the next, so that a row group is read once.

A row group can only be read from its beginning. Where it has more rows than a unit, as files of one row group of ten
thousand images do, every unit of it would read, on the average, half of it. Units come in order: the next one goes on
where the last one ended.
"""

import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.sources.source import RowRange
from pipeline.storage import filesystem as fs

_MOST_OPEN = 2  # of a worker: it is at as many units at once
_LOCKS = 16
_STREAM_BUFFER_BYTES = 8 * 2**20
_WHOLE_BYTES = 32 * 2**20  # of a row group's columns, that are read together and kept while its file is open
_BATCH_BYTES = 512 * 2**20
_BATCH_ROWS = 2**16

_Key: TypeAlias = tuple[str, tuple[str, ...]]  # a file, and the columns that are read of it


class OpenFiles:
    """The files that a worker has open, the last used ones; any thread may read."""

    def __init__(self, most: int = _MOST_OPEN) -> None:
        self._most = most
        self._lock = threading.Lock()  # guards what follows
        self._open = OrderedDict[_Key, _OpenFile]()
        self._of_file = [threading.Lock() for _ in range(_LOCKS)]  # one thread at a time reads a file on

    def read(self, row_range: RowRange, names: Sequence[str]) -> "tuple[pa.Schema, list[pa.RecordBatch]] | None":
        """Return the schema of the file and these rows, fewer where it has lost some; of these columns `stored` ones.

        None where that would be no gain, as behind other rows of the same row group, or where the store does not say
        whether a file is still the same. Raises OSError and ArrowException; the file is closed then.
        """
        key = row_range.url, tuple(names)
        with self._of_file[hash(key) % _LOCKS]:
            if (version := fs.version_of(row_range.url)) is None:
                return None
            with self._taken(key, version, row_range.start) as file:
                return None if file is None else (file.schema, file.read(row_range.start, row_range.num_rows))

    def close(self) -> None:
        """Close all of them."""
        with self._lock:
            files = [self._open.popitem()[1] for _ in range(len(self._open))]
        for file in files:
            file.close()

    @contextmanager
    def _taken(self, key: _Key, version: str, start: int) -> "Iterator[_OpenFile | None]":
        """Take the file out for the block, and keep it afterwards unless it is through; None where it is beyond."""
        with self._lock:
            file = self._open.pop(key, None)
        if file is not None and file.version != version:
            file.close()
            file = None
        if file is not None and file.is_beyond(start):
            self._keep(key, file)
            yield None
            return
        file = file or _OpenFile(*key, version)
        try:
            yield file
        except BaseException:
            file.close()
            raise
        if file.is_through:
            file.close()
        else:
            self._keep(key, file)

    def _keep(self, key: _Key, file: "_OpenFile") -> None:
        with self._lock:
            self._open[key] = file
            surplus = [self._open.popitem(last=False)[1] for _ in range(len(self._open) - self._most)]
        for old in surplus:
            old.close()


class _OpenFile:
    """A file, and how far it has been read."""

    def __init__(self, url: str, names: Sequence[str], version: str) -> None:
        self.version = version
        self._file = fs.open_url(url)
        try:
            self._footer = pq.read_metadata(self._file)
            self.schema = self._footer.schema.to_arrow_schema()
            self._names = stored(names, self.schema)
            sizes = [self._footer.row_group(group).num_rows for group in range(self._footer.num_row_groups)]
        except BaseException:
            self._file.close()
            raise
        self._ends = np.cumsum(sizes, dtype=np.int64)
        self._group = -1  # the row group that is being read
        self._row: int = 0  # the next row
        self._rest: pa.RecordBatch | None = None  # what has been decoded from there on
        self._batches: Iterator[pa.RecordBatch] = iter(())

    @property
    def is_through(self) -> bool:
        """Return whether there is nothing left to be read."""
        return bool(self._row >= self._footer.num_rows)

    def is_beyond(self, row: int) -> bool:
        """Return whether this row comes before what has been read already."""
        return row < self._row

    def read(self, start: int, num_rows: int) -> list[pa.RecordBatch]:
        """Return these rows, those that there are."""
        stop, found = min(start + num_rows, self._footer.num_rows), list[pa.RecordBatch]()
        while start < stop:
            batch = self._batch_at(start, num_rows)
            found.append(batch.slice(0, stop - start))
            start += found[-1].num_rows
            self._row, self._rest = start, batch.slice(found[-1].num_rows)
        return found

    def close(self) -> None:
        """Let go of it."""
        self._rest, self._batches = None, iter(())
        with suppress(OSError):
            self._file.close()

    def _batch_at(self, row: int, at_once: int) -> pa.RecordBatch:
        """Return some rows from this one on; those before it in its row group are decoded and dropped."""
        group = int(np.searchsorted(self._ends, row, side="right"))
        if group != self._group:
            self._group, self._row = group, int(self._ends[group - 1]) if group else 0
            self._rest, self._batches = None, self._batches_of(group, at_once)
        while self._rest is None or self._row + self._rest.num_rows <= row:
            self._row += self._rest.num_rows if self._rest is not None else 0
            self._rest = next(self._batches, None)
            if self._rest is None:
                raise OSError(
                    f"row group {group} must have the rows that the footer states, it ends at row {self._row}"
                )
        return self._rest.slice(row - self._row)

    def _batches_of(self, group: int, at_once: int) -> Iterator[pa.RecordBatch]:
        footer = self._footer.row_group(group)
        chunks = [footer.column(number) for number in range(footer.num_columns)]
        own = tuple(f"{name}." for name in self._names)
        size = sum(one.total_compressed_size for one in chunks if f"{one.path_in_schema}.".startswith(own))
        options = reading_options(is_whole=size <= _WHOLE_BYTES)
        rows = rows_at_once(self._footer, [group], at_once)
        parquet = pq.ParquetFile(self._file, metadata=self._footer, **options)
        yield from parquet.iter_batches(rows, row_groups=[group], columns=self._names, use_threads=False)


def stored(names: Sequence[str], schema: pa.Schema) -> list[str]:
    """Return those of the columns that a file has; one of its own where it has none, for its rows to be counted."""
    return [name for name in names if name in schema.names] or schema.names[:1]


def reading_options(*, is_whole: bool) -> dict[str, Any]:
    """Return how pyarrow reads row groups: each as a whole, or page by page."""
    return {"pre_buffer": True} if is_whole else {"pre_buffer": False, "buffer_size": _STREAM_BUFFER_BYTES}


def rows_at_once(footer: pq.FileMetaData, groups: Sequence[int], most: int) -> int:
    """Return the rows of a batch: lists of more than 2 GB in one cannot be decoded."""
    sizes = [(footer.row_group(group).total_byte_size, footer.row_group(group).num_rows) for group in groups]
    largest = max((size // max(1, rows) for size, rows in sizes), default=0)
    return max(1, min(most, _BATCH_ROWS, _BATCH_BYTES // max(1, largest)))
