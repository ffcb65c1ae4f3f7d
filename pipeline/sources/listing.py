"""Sources: what `--input` names, as files, rows and the work units they are cut into. Made once, on the driver."""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import compress, groupby

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.sources.columns import ColumnChoices, Columns, FileSchema, columns_of_files, find_columns
from pipeline.sources.discover import common_folder, expand_braces, find_input
from pipeline.sources.finding import LeftOut
from pipeline.sources.formats import source_of
from pipeline.sources.index_store import entry_of, read_index
from pipeline.sources.source import FileRows, Source
from pipeline.storage import filesystem as fs
from pipeline.storage.filesystem import FileInfo
from schemas.errors import Refused

_MIN_UNIT, _MAX_UNIT = 8, 64  # rows of a unit where the user sets none
_MOST_UNITS = 2**14  # that are no burden to a driver: beyond them units grow
_LARGEST_UNIT, _LARGEST_UNIT_BYTES = 256, 64 * 2**20  # of encoded images: some 400 MB of samples
_UNIT_BYTES = 256 * 2**20
_FOUND_AT_ONCE = 16  # they wait for storage

FILES_SCHEMA = pa.schema(
    [
        pa.field("url", pa.string(), nullable=False),
        pa.field("name", pa.string(), nullable=False),  # below the inputs' common folder; ids are made from it
        pa.field("size", pa.int64(), nullable=False),  # bytes
        pa.field("version", pa.string(), nullable=False),
        pa.field("num_rows", pa.int64(), nullable=False),
    ]
)
ROW_RANGES_SCHEMA = pa.schema(
    [
        pa.field("unit", pa.int32(), nullable=False),
        pa.field("url", pa.string(), nullable=False),
        pa.field("name", pa.string(), nullable=False),
        pa.field("start", pa.int64(), nullable=False),  # the range's first row in its file
        pa.field("num_rows", pa.int64(), nullable=False),
        pa.field("first_row", pa.int64(), nullable=False),  # the same row in the whole input
    ]
)
BYTES_SCHEMA = pa.schema([pa.field(name, pa.int64(), nullable=False) for name in ("offset", "num_bytes", "line")])


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """The input of a job. `row_ranges` are sorted by unit; a unit is one or more of them, `unit_rows` rows together.

    A job that answers one shard has all files, and of the rows those of its own units, which are numbered from 0.
    """

    source: Source
    columns: Columns
    files: pa.Table  # FILES_SCHEMA, those with rows in the job
    row_ranges: pa.Table  # ROW_RANGES_SCHEMA
    unit_rows: int
    num_rows: int
    left_out: str = ""  # what the inputs hold besides, for people
    listed: tuple[FileRows, ...] = ()  # what a resume need not look for; () where a limit ended it
    rows_before: int = 0  # in shards before this one
    rows_behind: int = 0  # in those behind it

    @property
    def format(self) -> str:
        """Return the name of the files' format."""
        return self.source.name

    @property
    def num_units(self) -> int:
        """Count the units, which are numbered from 0; only the last may have fewer than `unit_rows` rows."""
        return -(-self.num_rows // self.unit_rows)

    def unit(self, number: int) -> pa.Table:
        """Return the row ranges of one unit."""
        if not 0 <= number < self.num_units:
            raise ValueError(f"unit must be from 0 to {self.num_units - 1}, got {number}")
        column = self.row_ranges.column("unit")
        units = (
            column.chunk(0).to_numpy() if column.num_chunks == 1 else column.to_numpy()
        )  # of chunks a copy, each time
        start, stop = np.searchsorted(units, np.array([number, number + 1], units.dtype))
        return self.row_ranges.slice(start, stop - start)

    @property
    def num_input_rows(self) -> int:
        """Count the rows of all shards."""
        return self.rows_before + self.num_rows + self.rows_behind

    def shard(self, number: int, num_shards: int) -> "Listing":
        """Return the `number`-th of so many parts, counted from 1, of as many units each as can be; raise Refused for
        one without any."""
        first, last = (self.num_units * one // num_shards for one in (number - 1, number))
        if first == last:
            raise Refused(
                f"--shard {number}/{num_shards} must have a unit of the input, which has {self.num_units} of up to "
                f"{self.unit_rows} rows: take fewer shards, or fewer --unit-rows"
            )
        before, stop = first * self.unit_rows, min(last * self.unit_rows, self.num_rows)
        units = self.row_ranges.column("unit").to_numpy()
        start, end = np.searchsorted(units, np.array([first, last], units.dtype))
        ranges = self.row_ranges.slice(start, end - start)
        renumbered = pa.array(units[start:end] - units.dtype.type(first))
        index = ranges.column_names.index("unit")
        return replace(
            self,
            row_ranges=ranges.set_column(index, ROW_RANGES_SCHEMA.field("unit"), renumbered),
            num_rows=stop - before,
            rows_before=before,
            rows_behind=self.num_rows - stop,
        )

    def fingerprint(self) -> str:
        """Return the sha256 over every file's url, size, version and rows: another one means another input."""
        texts = (self.files.column(name).cast(pa.string()) for name in ("url", "size", "version", "num_rows"))
        lines = pc.binary_join_element_wise(*texts, "\t")
        return hashlib.sha256("\n".join(lines.to_pylist()).encode()).hexdigest()


def list_input(
    inputs: Sequence[str],
    choices: ColumnChoices,
    limit: int | None = None,
    unit_rows: int | None = None,
    output: str | None = None,
) -> Listing:
    """List, check and cut what the user named; the same files give the same listing. Raise Refused for bad input.

    What the job writes to `output` is none of its input.
    """
    for name, value in (("limit", limit), ("unit_rows", unit_rows)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    urls = [one for url in inputs for one in expand_braces(url)]
    with ThreadPoolExecutor(_FOUND_AT_ONCE) as pool:
        found = list(pool.map(lambda url: find_input(url, output), urls))
    files = list({file.url: file for one in found for file in one.files}.values())  # one named twice is read once
    if not files:  # of tables all of whose rows were deleted
        raise Refused(f"--input must have at least one row, {', '.join(inputs)} has none")
    source = source_of(found)
    listed = _look_through(files, source, limit, output)
    rows = np.array([file.num_rows for file in listed], np.int64)
    columns = _find_columns(listed, source, choices, limit)
    total = int(rows.sum())
    if total == 0:
        raise Refused(f"--input must have at least one row, {', '.join(inputs)} has none")
    num_rows = min(total, limit or total)
    used = int(np.searchsorted(np.cumsum(rows), num_rows)) + 1  # files that have rows of the job
    table = files_table(files[:used], common_folder([fs.spelled(one.root) for one in found]), rows[:used])
    unit_rows = unit_rows or default_unit_rows(num_rows, _heaviest_row(table, source))
    row_ranges = _with_bytes(cut(table, num_rows, unit_rows), listed)
    left_out = LeftOut()
    for one in found:
        left_out.update(one.left_out)
    return Listing(
        source=source,
        columns=columns,
        files=table,
        row_ranges=row_ranges,
        unit_rows=unit_rows,
        num_rows=num_rows,
        left_out=str(left_out),
        listed=() if limit else tuple(file for file in listed if file.index is not None),
    )


def _look_through(
    files: Sequence[FileInfo], source: Source, limit: int | None, output: str | None
) -> Sequence[FileRows]:
    """Return what files hold, those that a run in `output` has looked through from its index."""
    kept = read_index(output) if output and not limit else {}
    known = {file.url: kept[entry_of(file)] for file in files if entry_of(file) in kept}
    if not known:
        return source.list(files, limit)
    fresh = source.list([file for file in files if file.url not in known], limit)
    known |= {file.url: file for file in fresh}
    return [known[file.url] for file in files]


def default_unit_rows(num_rows: int, row_bytes: float = 0.0) -> int:
    """Return few enough rows that a short job keeps every worker busy, enough that answer files are not tiny and that
    one driver hands out the units of a long one.

    A unit of a table travels as one block: where a row has `row_bytes` in it, the rows that are 256 MB together.
    """
    fitting = max(1, int(_UNIT_BYTES // max(1.0, row_bytes)))
    grown = min(num_rows // _MOST_UNITS, _LARGEST_UNIT, int(_LARGEST_UNIT_BYTES // max(1.0, row_bytes)))
    return min(max(num_rows // 32, _MIN_UNIT), max(_MAX_UNIT, grown), fitting)


def _heaviest_row(files: pa.Table, source: Source) -> float:
    """Return the mean bytes of a row in the table where that is largest; 0 for images, which are fetched one by one."""
    if not source.is_table:
        return 0.0
    return float(np.max(files.column("size").to_numpy() / np.maximum(1, files.column("num_rows").to_numpy())))


def cut(files: pa.Table, num_rows: int, unit_rows: int) -> pa.Table:
    """Cut the first `num_rows` rows of these files every `unit_rows` and where a file ends: ROW_RANGES_SCHEMA.

    Row groups play no part: the cut depends on nothing but the files' rows.
    """
    ends = np.cumsum(files.column("num_rows").to_numpy())
    starts = ends - files.column("num_rows").to_numpy()
    first_row = np.union1d(starts[starts < num_rows], np.arange(0, num_rows, unit_rows))
    file = np.searchsorted(ends, first_row, side="right")  # a file without rows is passed over
    columns = {
        "unit": (first_row // unit_rows).astype(np.int32),
        "url": files.column("url").take(pa.array(file)),
        "name": files.column("name").take(pa.array(file)),
        "start": first_row - starts[file],
        "num_rows": np.diff(first_row, append=num_rows),
        "first_row": first_row,
    }
    return pa.table(columns, schema=ROW_RANGES_SCHEMA)


def _with_bytes(row_ranges: pa.Table, listed: Sequence[FileRows]) -> pa.Table:
    """Add where the rows of each range are in their file, in formats that find them by that."""
    indexes = {file.url: file.index for file in listed if file.index is not None}
    if not indexes:
        return row_ranges
    found = {name: np.zeros(row_ranges.num_rows, np.int64) for name in BYTES_SCHEMA.names}
    urls, starts = row_ranges.column("url").to_pylist(), row_ranges.column("start").to_numpy()
    stops = starts + row_ranges.column("num_rows").to_numpy()
    first = 0
    for url, same in groupby(urls):
        last = first + sum(1 for _ in same)
        index = indexes[url]
        found["offset"][first:last] = index.offsets[starts[first:last]]
        found["num_bytes"][first:last] = index.offsets[stops[first:last]] - index.offsets[starts[first:last]]
        found["line"][first:last] = index.lines[starts[first:last]]
        first = last
    for field in BYTES_SCHEMA:
        row_ranges = row_ranges.append_column(field, pa.array(found[field.name]))
    return row_ranges


def _find_columns(listed: Sequence[FileRows], source: Source, choices: ColumnChoices, limit: int | None) -> Columns:
    if not source.is_table:
        return columns_of_files(listed[0].schema if listed else pa.schema([]), choices)
    rows = np.array([file.num_rows for file in listed], np.int64)
    before = np.cumsum(rows) - rows
    decide = (rows > 0) & (before < (limit or np.inf))  # files without rows in the job say nothing of its columns
    schemas = [
        FileSchema(url=file.url, schema=file.schema, disputed=file.disputed) for file in compress(listed, decide)
    ]
    return find_columns(schemas, choices, source.convention) if schemas else Columns()


def files_table(files: Sequence[FileInfo], folder: str, rows: npt.NDArray[np.int64]) -> pa.Table:
    """Return FILES_SCHEMA of these files and their rows; names are below `folder`."""
    columns = {
        "url": [file.url for file in files],
        "name": [fs.spelled(file.url)[len(folder) :] for file in files],
        "size": [file.size for file in files],
        "version": [file.version for file in files],
        "num_rows": rows,
    }
    return pa.table(columns, schema=FILES_SCHEMA)
