"""Pieces: consecutive rows of a Parquet file, read from wherever it is."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import storage

_STREAM_BUFFER_BYTES = 8 * 2**20
_BATCH_BYTES = 512 * 2**20
_BATCH_ROWS = 2**16


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Some rows of a Parquet file; `start` is the position of the first in it."""

    url: str
    name: str
    start: int
    num_rows: int

    def __str__(self) -> str:
        return f"rows {self.start} to {self.start + self.num_rows - 1} of {self.url}"


def read_piece(piece: Piece, names: list[str], whole_read_bytes: int) -> Iterator[pa.RecordBatch]:
    """These columns of the piece's rows, of fewer rows where its file has lost some.

    Row groups of more than `whole_read_bytes` are streamed page by page.
    """
    with storage.open_url(piece.url) as file:
        metadata = pq.read_metadata(file)
        groups, skip = _row_groups(metadata, piece.start, piece.num_rows)
        whole = max((metadata.row_group(group).total_byte_size for group in groups), default=0) <= whole_read_bytes
        options = {"pre_buffer": True} if whole else {"pre_buffer": False, "buffer_size": _STREAM_BUFFER_BYTES}
        with pq.ParquetFile(file, metadata=metadata, **options) as parquet:
            missing = set(names) - set(parquet.schema_arrow.names)
            if missing:
                raise OSError(f"the file must have a column {min(missing)!r} as when listed, it has none")
            left = piece.num_rows
            at_once = _rows_at_once(metadata, groups, piece.num_rows)
            for batch in parquet.iter_batches(at_once, row_groups=groups, columns=names, use_threads=False):
                wanted = batch.slice(skip, left)
                skip -= min(skip, batch.num_rows)
                left -= wanted.num_rows
                if wanted.num_rows:
                    yield wanted
                if not left:
                    return


def halves(piece: Piece) -> list[Piece]:
    """The piece as two; itself where it is one row."""
    half = piece.num_rows // 2
    rest = replace(piece, start=piece.start + half, num_rows=piece.num_rows - half)
    return [replace(piece, num_rows=half), rest] if half else [piece]


def by_row_group(piece: Piece) -> list[Piece]:
    """The piece cut where its file's row groups end; whole where the file does not tell, or is another one by now."""
    try:
        with storage.open_url(piece.url) as file:
            metadata = pq.read_metadata(file)
    except (OSError, pa.ArrowException):
        return [piece]
    ends = np.cumsum([metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)], dtype=np.int64)
    stop = piece.start + piece.num_rows
    if not len(ends) or stop > ends[-1]:
        return [piece]
    cuts = [piece.start, *ends[(ends > piece.start) & (ends < stop)].tolist(), stop]
    return [replace(piece, start=start, num_rows=end - start) for start, end in pairwise(cuts)]


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
