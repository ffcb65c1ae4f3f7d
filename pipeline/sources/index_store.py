"""Index store: where rows begin in files that are found by their bytes, kept in the run folder, so that a resume need
not look through them again.

It only saves time: an entry counts for the very file that it was made of, and without it the file is looked through.
"""

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.sources.source import FileRows, RowIndex
from pipeline.storage import filesystem as fs
from pipeline.storage.filesystem import FileInfo
from schemas.run import STATE

_NAME = "index.pq"
_EARLIER = "index.parquet"  # beside the answers, where earlier releases kept it
Entry: TypeAlias = tuple[str, int, str]  # a file's URL, size and version
_NUMBERS = pa.large_list(pa.int64())
_SCHEMA = pa.schema(
    [
        *(("url", pa.string()), ("size", pa.int64()), ("version", pa.string())),
        *(("schema", pa.large_binary()), ("offsets", _NUMBERS), ("lines", _NUMBERS)),
    ]
)


def entry_of(file: FileInfo) -> Entry:
    """Return what a file is known by; another content has another version."""
    return file.url, file.size, file.version


def keep_index(folder: str, files: pa.Table, listed: Sequence[FileRows]) -> None:
    """Write what was found in files, if anything, into the folder that keeps a run's state; `files`: FILES_SCHEMA."""
    if not listed:
        return
    versions = {row["url"]: row for row in files.select(["url", "size", "version"]).to_pylist()}
    rows = [
        {
            **versions[file.url],
            "schema": file.schema.serialize().to_pybytes(),
            "offsets": file.index.offsets,
            "lines": file.index.lines,
        }
        for file in listed
        if file.index is not None and file.url in versions
    ]
    if rows:
        sink = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pylist(rows, schema=_SCHEMA), sink, compression="zstd")
        fs.write_atomic(fs.join(folder, _NAME), sink.getvalue().to_pybytes())


def read_index(folder: str) -> Mapping[Entry, FileRows]:
    """Return what a run folder keeps of files; nothing where it keeps none, or what it keeps cannot be read."""
    try:
        url = next(filter(fs.exists, (fs.join(folder, name) for name in (f"{STATE}/{_NAME}", _NAME, _EARLIER))), None)
        if url is None:
            return {}
        with fs.open_url(url) as file:
            table = pq.read_table(file, schema=_SCHEMA)
    except (OSError, ValueError, pa.ArrowException):
        return {}
    return {
        (url.as_py(), size.as_py(), version.as_py()): FileRows(
            url=url.as_py(),
            num_rows=len(lines.values),
            schema=pa.ipc.read_schema(pa.py_buffer(schema.as_py())),
            index=RowIndex(offsets=_numbers(offsets), lines=_numbers(lines)),
        )
        for url, size, version, schema, offsets, lines in zip(*table.columns, strict=True)
    }


def _numbers(value: pa.LargeListScalar) -> npt.NDArray[np.int64]:
    numbers: npt.NDArray[np.int64] = value.values.to_numpy(zero_copy_only=False).astype(np.int64)
    return numbers
