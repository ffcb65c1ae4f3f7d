"""Rows of a benchmark's Parquet files, a few at a time, with the columns that it names."""

import difflib
from collections.abc import Iterator, Sequence
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.sources.finding import find_files
from pipeline.sources.parquet import PARQUET_SUFFIXES
from pipeline.storage import filesystem as fs
from pipeline.storage.filesystem import FileInfo
from schemas.errors import Refused
from schemas.wording import one_line

_ROWS_AT_ONCE = 32  # images of documents and charts take megabytes
_STREAM_BUFFER_BYTES = 8 * 2**20  # else a whole row group is read at once


def read_rows(path: str, columns: Sequence[str], optional: Sequence[str] = ()) -> Iterator[dict[str, Any]]:
    """Yield the rows of all Parquet files of a folder, glob or file, in the order of their names.

    An optional column that is not there is None in every row.
    """
    for file in files_of(path, PARQUET_SUFFIXES, "Parquet files"):
        with fs.open_url(file.url) as stream, _open_parquet(stream, file.url) as parquet:
            there = parquet.schema_arrow.names
            _check_columns(file.url, columns, there)
            absent = dict.fromkeys(name for name in optional if name not in there)
            wanted = [*columns, *(name for name in optional if name in there)]
            for batch in parquet.iter_batches(_ROWS_AT_ONCE, columns=wanted, use_threads=False):
                yield from (row | absent for row in batch.to_pylist())


def files_of(path: str, suffixes: tuple[str, ...], what: str) -> list[FileInfo]:
    """Return the files of a folder, glob or path by their names; raise ValueError where there are none."""
    try:
        files = find_files(path, suffixes).files
    except OSError as error:
        raise Refused(f"{path} cannot be listed: {one_line(error)}") from error
    if not files:
        raise Refused(f"{path} must name {what}, none is there")
    return list(files)


def encoded(image: dict[str, Any] | bytes | None) -> bytes:
    """Return an image cell's bytes: the struct that datasets writes, or bytes alone; none at all become an error row
    later."""
    data = image.get("bytes") if isinstance(image, dict) else image
    return data or b""


def truths(answers: Sequence[Any] | None, id: object) -> tuple[str, ...]:
    """Return the accepted answers of a question, texts or structs with `answer`; a split that keeps them secret is
    refused."""
    if not answers:
        raise Refused(f"question {id} must have answers; this split keeps them secret, choose another")
    return tuple(one["answer"] if isinstance(one, dict) else one for one in answers)


def _open_parquet(stream: IO[bytes], url: str) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(stream, pre_buffer=False, buffer_size=_STREAM_BUFFER_BYTES)
    except (OSError, pa.ArrowInvalid) as error:
        raise Refused(f"{url} must be a Parquet file that can be read: {one_line(error)}") from error


def _check_columns(url: str, columns: Sequence[str], there: Sequence[str]) -> None:
    for name in columns:
        if name not in there:
            near = difflib.get_close_matches(name, there, n=1)
            advice = f"did you mean {near[0]!r}? " if near else ""
            raise Refused(f"{url} must have a column {name!r}; {advice}it has {', '.join(there)}")
