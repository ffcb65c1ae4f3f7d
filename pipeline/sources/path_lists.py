"""Path lists: a path or URL of an image in every line."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import IO

import pyarrow as pa

from pipeline.sources.columns import Columns
from pipeline.sources.convention import CONVENTION, Convention
from pipeline.sources.lines import index_lines, read_lines
from pipeline.sources.records import Indexed, Record
from pipeline.sources.source import RowRange
from schemas.errors import Failure
from schemas.wording import redacted

_SCHEMA = pa.schema([("path", pa.string()), ("id", pa.string())])


@dataclass(frozen=True, slots=True)
class PathLists:
    """Text files of paths, relative to themselves, and URLs; a row is called after its line, without secrets in it."""

    name: str = "list"
    convention: Convention = CONVENTION

    def index(self, file: IO[bytes], limit: int | None) -> Indexed:
        """Find the lines."""
        return Indexed(index=index_lines(file, limit), schema=_SCHEMA)

    def records(self, file: IO[bytes], row_range: RowRange, columns: Columns) -> Iterator[Record | Failure]:
        """Yield the lines."""
        for number, line in islice(read_lines(file, row_range), row_range.num_rows):
            yield line if isinstance(line, Failure) else _record(line, f"line {number} of {row_range.url}")


def _record(line: bytes, where: str) -> Record | Failure:
    try:
        path = line.decode().strip()
    except UnicodeDecodeError as error:
        return Failure(stage="read", type="InvalidText", message=f"{where} must be UTF-8 text: {error}; write it anew")
    return {"path": path, "id": redacted(path)}
