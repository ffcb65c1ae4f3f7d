"""Open files: Parquet files that stay open from one unit to the next, so that a row group is read once.

A row group can only be read from its beginning. Where it has more rows than a unit, as files of one row group of ten
thousand images do, every unit of it would read, on the average, half of it. Units come in order: the next one goes on
where the last one ended.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.storage import filesystem as fs

_MOST_OPEN = 2  # of a worker: it is at as many units at once
_LOCKS = 16
_STREAM_BUFFER_BYTES = 8 * 2**20
_WHOLE_BYTES = 32 * 2**20  # of a row group's columns, that are read together and kept while its file is open
_BATCH_BYTES = 512 * 2**20
_BATCH_ROWS = 2**16

Choose: TypeAlias = Callable[[pa.Schema], list[str]]  # of a file's columns those that are read


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Rows of a file, and which of its columns; `names` tells one choice from another."""

    url: str
    start: int
    num_rows: int
    names: tuple[str, ...]
    choose: Choose


class OpenFiles:
    """The files that a worker has open, the last used ones; any thread may read."""

    def __init__(self, most: int = _MOST_OPEN) -> None:
        self._most = most
        self._lock = threading.Lock()  # guards what follows
        self._open = OrderedDict[tuple[str, tuple[str, ...]], _OpenFile]()
        self._of_file = [threading.Lock() for _ in range(_LOCKS)]  # one thread at a time reads a file on

    def read(self, wanted: Wanted) -> "tuple[pa.Schema, list[pa.RecordBatch]] | None":
        """Return the schema of the file and these rows, fewer where it has lost some.

        None where that would be no gain, as behind other rows of the same row group, or where the store does not say
        whether a file is still the same. Raises OSError and ArrowException; the file is closed then.
        """
        key = wanted.url, wanted.names
        with self._of_file[hash(key) % _LOCKS]:
            if (version := fs.version_of(wanted.url)) is None:
                return None
            with self._taken(key, version, wanted) as file:
                return None if file is None else (file.schema, file.read(wanted.start, wanted.num_rows))

    def close(self) -> None:
        """Close all of them."""
        with self._lock:
            files = [self._open.popitem()[1] for _ in range(len(self._open))]
        for file in files:
            file.close()

    @contextmanager
    def _taken(self, key: tuple[str, tuple[str, ...]], version: str, wanted: Wanted) -> "Iterator[_OpenFile | None]":
        """Take the file out for the block, and keep it afterwards unless it is through; None where it is beyond."""
        with self._lock:
            file = self._open.pop(key, None)
        if file is not None and file.version != version:
            file.close()
            file = None
        if file is not None and file.is_beyond(wanted.start):
            self._keep(key, file)
            yield None
            return
        file = file or _OpenFile(wanted.url, version, wanted.choose)
        try:
            yield file
        except BaseException:
            file.close()
            raise
        if file.is_through:
            file.close()
        else:
            self._keep(key, file)

    def _keep(self, key: tuple[str, tuple[str, ...]], file: "_OpenFile") -> None:
        with self._lock:
            self._open[key] = file
            surplus = [self._open.popitem(last=False)[1] for _ in range(len(self._open) - self._most)]
        for old in surplus:
            old.close()


class _OpenFile:
    """A file, and how far it has been read."""

    def __init__(self, url: str, version: str, choose: Choose) -> None:
        self.version = version
        self._file = fs.open_url(url)
        try:
            self._footer = pq.read_metadata(self._file)
            self.schema = self._footer.schema.to_arrow_schema()
            self._names = choose(self.schema)
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
        is_small = size <= _WHOLE_BYTES
        options = {"pre_buffer": True} if is_small else {"pre_buffer": False, "buffer_size": _STREAM_BUFFER_BYTES}
        rows = max(
            1, min(at_once, _BATCH_ROWS, _BATCH_BYTES // max(1, footer.total_byte_size // max(1, footer.num_rows)))
        )
        parquet = pq.ParquetFile(self._file, metadata=self._footer, **options)
        yield from parquet.iter_batches(rows, row_groups=[group], columns=self._names, use_threads=False)
