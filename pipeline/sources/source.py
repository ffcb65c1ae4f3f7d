"""Source: the one interface of an input format. A format is a file that has it; nobody else asks which format it is."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.sources.columns import Columns
from pipeline.sources.convention import Convention
from pipeline.storage.filesystem import FileInfo
from schemas.errors import Failure


@dataclass(frozen=True, slots=True, kw_only=True)
class RowRange:
    """Consecutive rows of a file; `start` is the number of the first in it.

    Where rows are found by their bytes, they are `num_bytes` of the file's content from `offset` on, the first of them
    in line `line`.
    """

    url: str
    name: str
    start: int
    num_rows: int
    offset: int = 0
    num_bytes: int = 0
    line: int = 0

    def part(self, first: int, num_rows: int) -> "RowRange":
        """Return some of these rows; `first` is counted from the range's own first row."""
        return replace(self, start=self.start + first, num_rows=num_rows)

    def __str__(self) -> str:
        return f"rows {self.start} to {self.start + self.num_rows - 1} of {self.url}"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RowIndex:
    """Says where each row of a file begins, and behind them where the last one ends; `lines` in the lines of a text."""

    offsets: npt.NDArray[np.int64]
    lines: npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRows:
    """Describes a file when it is listed."""

    url: str
    num_rows: int
    schema: pa.Schema
    index: RowIndex | None = None
    disputed: Mapping[str, str] = field(default_factory=dict)  # columns that its folders say otherwise, and how


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """The rows of a range as they are in their file: the columns that were asked for."""

    row_range: RowRange
    batch: pa.RecordBatch
    ids: pa.Array | None = None  # where the format names rows itself; None: file and row number
    images: pa.Array | None = None  # URIs, where the named files are the images; of many ranges at once
    failures: Mapping[int, Failure] = field(default_factory=dict)  # of rows that cannot be read, by number here

    def made_ids(self) -> pa.Array:
        """Return the ids of rows that have none in a column."""
        return made_ids(self.row_range) if self.ids is None else self.ids


@dataclass(frozen=True, slots=True, kw_only=True)
class Unread:
    """Rows of a range of which nothing can be read but, at best, their ids."""

    row_range: RowRange
    failure: Failure
    ids: pa.Array | None = None


class Source(Protocol):
    """Lists and reads the files of one format."""

    @property
    def name(self) -> str: ...  # of the format, for people and in a run's identity

    @property
    def is_table(self) -> bool: ...  # whether rows have columns and travel with their share of the file's bytes

    @property
    def convention(self) -> Convention: ...  # names by which columns are found

    def list(self, files: Sequence[FileInfo], limit: int | None) -> list[FileRows]:
        """Return what all files hold, or only the first that have `limit` rows together; raise Refused."""
        ...

    def read(self, row_ranges: Sequence[RowRange], columns: Columns) -> Iterator[Rows | Unread]:
        """Yield all rows of these ranges in order, those that cannot be read with a reason."""
        ...

    def read_ids(self, row_range: RowRange, columns: Columns) -> Iterator[Rows]:
        """Yield the rows with their id column alone, or unread where they have none; raise OSError, ArrowException."""
        ...


def ranges_of(table: pa.Table) -> list[RowRange]:
    """Return the row ranges of a listing as records."""
    wanted = [field.name for field in fields(RowRange) if field.name in table.column_names]
    return [RowRange(**row) for row in table.select(wanted).to_pylist()]


def made_ids(row_range: RowRange) -> pa.Array:
    """Return ids of the file's name and the row's number in it."""
    numbers: npt.NDArray[np.int64] = np.arange(row_range.start, row_range.start + row_range.num_rows)
    return pc.binary_join_element_wise(row_range.name, pa.array(numbers).cast(pa.string()), ":")
