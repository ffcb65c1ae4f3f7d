"""Answer files: what a manifest states, read whole against its hash, or some rows at a time."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.storage import filesystem as fs
from pipeline.storage.local_files import NotRegular

ROWS_AT_ONCE = 10_000


class LostFile(RuntimeError):
    """A file that a manifest states is not the one that was written."""

    def __init__(self, path: str, what: str, data: bytes | None = None) -> None:
        super().__init__(f"{path} {what}")
        self.path = path
        self.data = data  # what is there instead


def read_stated(folder: str, file: Mapping[str, Any]) -> bytes:
    """Return the bytes of a file that the manifest states with its `sha256`; raise LostFile for all others."""
    path = file["path"]
    try:
        data = fs.read_bytes(fs.join(folder, path))
    except FileNotFoundError as error:
        raise LostFile(path, "is missing") from error
    except NotRegular as error:
        raise LostFile(path, "is no file: move away what is there") from error
    if hashlib.sha256(data).hexdigest() != file["sha256"]:
        raise LostFile(path, f"is not the file that was written: it has {len(data)} bytes or another hash", data)
    return data


def read_tables(url: str, columns: Sequence[str] | None = None, rows: int = ROWS_AT_ONCE) -> Iterator[pa.Table]:
    """Yield the rows of a Parquet file in order, some at a time, as tables of these columns (None: of all)."""
    with fs.open_url(url) as file, pq.ParquetFile(file, page_checksum_verification=True) as parquet:
        for batch in parquet.iter_batches(rows, columns=columns, use_threads=False):
            yield pa.Table.from_batches([batch])
