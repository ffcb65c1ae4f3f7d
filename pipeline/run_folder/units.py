"""Units: the answers of finished work units as files, and what they count to.

A unit is done exactly when its file exists. Its file carries the run's name, its own number and a seal, so that a torn
or damaged file, or one that belongs elsewhere, is found when it is read.
"""

import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.run_folder.layout import unit_suffix
from pipeline.run_folder.seal import BrokenSeal, check_seal, is_sealed, marks_of, write_sealed
from pipeline.storage import filesystem as fs
from schemas.answer import with_added
from schemas.wording import one_line, printable, shortened

ROWS_A_GROUP = 10_000
_BYTES_A_GROUP = 512 * 2**20  # of a column more than 2 GB at once cannot be read where it is nested
EXAMPLES = 3  # kept of each type of error
_SHOWN = 300  # characters of an id and of a message in an example
_RUN, _UNIT = "llava_batch_run", "llava_batch_unit"


class BrokenUnit(RuntimeError):
    """The file of a unit is torn or damaged, or is not this unit of this run."""


class OtherColumns(BrokenUnit):
    """The file of a unit is whole and of this run, but has other columns than the run has now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorType:
    """The rows that failed at one stage in one way; `examples` are the first few of them as `id: message`."""

    stage: str
    type: str
    rows: int
    examples: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """Answer rows by status, and errors by stage and type."""

    rows: int = 0
    errors: int = 0
    by_type: tuple[ErrorType, ...] = field(default=())

    def __add__(self, other: "Counts") -> "Counts":
        by_type = _merge_types([*self.by_type, *other.by_type])
        return Counts(rows=self.rows + other.rows, errors=self.errors + other.errors, by_type=by_type)


def count_answers(answers: pa.Table) -> Counts:
    """Return the counts of one table of answers."""
    failed = answers.select(["status", "error_stage", "error_type", "id", "error_message"])
    failed = failed.filter(pc.equal(failed.column("status"), "error"))
    types = (
        ErrorType(
            stage=row["error_stage"],
            type=row["error_type"],
            rows=1,
            examples=(_example(row["id"], row["error_message"]),),
        )
        for row in failed.to_pylist()
    )
    return Counts(rows=answers.num_rows, errors=failed.num_rows, by_type=_merge_types(types))


def _example(id: str, message: str) -> str:
    """Return a failed row as it may be shown, whatever its data are."""
    return printable(f"{shortened(id, _SHOWN)}: {shortened(message, _SHOWN)}")


def unit_path(folder: str, unit: int) -> str:
    """Return where the answers of a unit are written, at once and whole."""
    return fs.join(folder, "units", f"unit-{unit:08d}{unit_suffix(folder)}")


def write_unit(folder: str, run: str, unit: int, answers: pa.Table) -> None:
    """Write a unit's answers; writing them again changes nothing."""
    fs.write_atomic(unit_path(folder, unit), to_sealed(answers, {_RUN: run, _UNIT: str(unit)}))


def keep_trace(folder: str, name: str, trace: str) -> None:
    """Put the first traceback of a kind of error in `errors/` of the folder that keeps the run's state."""
    fs.create_new(trace_path(folder, name), trace.encode("utf-8", "backslashreplace"))


def trace_path(folder: str, name: str) -> str:
    """Return where the text about a kind of error is, below the folder that keeps the run's state."""
    safe = re.sub(r"[^\w.-]", "_", name, flags=re.ASCII)[:100]
    return fs.join(folder, "errors", f"{safe}.txt")


def read_unit_answers(
    folder: str, run: str, unit: int, rows: int, schema: pa.Schema | None = None, *, sealed: bool = True
) -> pa.Table:
    """Return the answers of a finished unit, `rows` of them in columns of `schema` (None: any that a release had).

    Raises BrokenUnit, and OSError where the storage fails. `sealed` False also takes a file without a seal, and one
    without the columns that were added since, as the first release wrote them.
    """
    path = unit_path(folder, unit)
    data = fs.read_bytes(path)
    try:
        table = read_sealed(data) if sealed else read_table(data)
        marks = marks_of(data)
    except BrokenTable as error:
        raise BrokenUnit(f"{path} is torn or damaged: {error}") from error
    if (marks.get(_RUN), marks.get(_UNIT)) != (run, str(unit)):
        raise BrokenUnit(f"{path} is not unit {unit} of this run")
    if table.num_rows != rows:
        raise BrokenUnit(f"{path} must have {rows} answers, it has {table.num_rows}")
    table = table if sealed and schema is not None else with_added(table)
    if schema is not None and not table.schema.equals(schema):
        raise OtherColumns(f"{path} must have the columns of this run: {difference(table.schema, schema)}")
    return table


class BrokenTable(ValueError):
    """These bytes are no Parquet file, or not the one that was written; the message says why, not which file."""


def read_sealed(data: bytes) -> pa.Table:
    """Return the rows of a sealed Parquet file; raise BrokenTable where a bit of it is not as it was written."""
    try:
        check_seal(data)
    except BrokenSeal as error:
        raise BrokenTable(str(error)) from error
    return read_table(data)


def read_table(data: bytes) -> pa.Table:
    """Return the rows of a Parquet file, sealed or not; raise BrokenTable where it is torn or its seal is broken."""
    try:
        if is_sealed(data):
            check_seal(data)
        table = read_answers(data)
    except (OSError, pa.ArrowException, BrokenSeal) as error:
        raise BrokenTable(_NOT_A_NAME.sub("", one_line(error))) from error
    return table.replace_schema_metadata(None)


_NOT_A_NAME = re.compile(r"Could not open Parquet input source '<Buffer>': |'?<Buffer>'?")  # Arrow's, of bytes


def as_written(schema: pa.Schema) -> pa.Schema:
    """Return the schema with which rows of this one are read from their Parquet file."""
    return read_table(to_sealed(schema.empty_table())).schema


def difference(found: pa.Schema, wanted: pa.Schema) -> str:
    """Return the first column in which two schemas differ, in words."""
    for has, should in zip_longest(found, wanted):
        if has is None or should is None or not has.equals(should):
            return f"it has {_named(has)} where {_named(should)} must be"
    return "its columns differ in their metadata"


def _named(field: pa.Field | None) -> str:
    return "no column" if field is None else f"{field.name!r} ({field.type})"


def read_answers(data: bytes) -> pa.Table:
    """Return all of a Parquet file in memory, a row group at a time."""
    with pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True) as parquet:
        groups = range(parquet.num_row_groups)
        return pa.concat_tables([parquet.read_row_group(group) for group in groups]) if groups else parquet.read()


def done_units(folder: str) -> set[int]:
    """Return the numbers of the units whose files exist: in units/ itself, under exactly the name of a unit."""
    there = {file.url for file in fs.list_folder(fs.join(folder, "units"), (unit_suffix(folder),))}
    names = (re.search(r"/unit-(\d{8,})\.\w+$", url) for url in there)
    numbers = {int(name[1]) for name in names if name}
    return {number for number in numbers if fs.absolute(unit_path(folder, number)) in there}


def to_sealed(table: pa.Table, marks: Mapping[str, str] | None = None) -> bytes:
    """Return one sealed Parquet file of this table, with these marks: zstd, row groups that a viewer can open."""
    plain = table.replace_schema_metadata(None)
    size = _rows_a_group(plain)
    groups = (plain.slice(start, size) for start in range(0, max(1, plain.num_rows), size))
    return write_sealed(groups, plain.schema, marks)


def to_parquet(table: pa.Table) -> bytes:
    """Return one Parquet file of this table: zstd, row groups that a viewer can open."""
    buffer = io.BytesIO()
    groups = _rows_a_group(table)
    pq.write_table(table, buffer, compression="zstd", row_group_size=groups, write_page_checksum=True)
    return buffer.getvalue()


def stream_to_parquet(tables: Iterator[pa.Table]) -> bytes:
    """Return one Parquet file of these tables, all of one schema; no more than a row group is held as rows."""
    buffer = io.BytesIO()
    waiting = [next(tables)]
    with pq.ParquetWriter(buffer, waiting[0].schema, compression="zstd", write_page_checksum=True) as writer:
        for table in tables:
            if sum(one.num_rows for one in waiting) >= ROWS_A_GROUP or sum(map(_bytes_of, waiting)) >= _BYTES_A_GROUP:
                _write_group(writer, waiting)
                waiting = []
            waiting.append(table)
        _write_group(writer, waiting)
    return buffer.getvalue()


def _write_group(writer: pq.ParquetWriter, tables: Sequence[pa.Table]) -> None:
    together = pa.concat_tables(tables)
    rows = together.num_rows if _bytes_of(together) <= 2 * _BYTES_A_GROUP else _rows_a_group(together)
    writer.write_table(together, row_group_size=max(1, rows))


def _rows_a_group(table: pa.Table) -> int:
    """Return as many rows as a viewer can open, fewer where they are large."""
    rows = table.num_rows * _BYTES_A_GROUP // max(1, _bytes_of(table))
    return max(1, min(ROWS_A_GROUP, int(rows)))


def _bytes_of(table: pa.Table) -> int:
    size: int = table.get_total_buffer_size()
    return size


def _merge_types(types: Iterable[ErrorType]) -> tuple[ErrorType, ...]:
    merged: dict[tuple[str, str], ErrorType] = {}
    for one in types:
        key = (one.stage, one.type)
        before = merged.get(key, ErrorType(stage=one.stage, type=one.type, rows=0))
        examples = (*before.examples, *one.examples)[:EXAMPLES]
        merged[key] = ErrorType(stage=one.stage, type=one.type, rows=before.rows + one.rows, examples=examples)
    return tuple(merged[key] for key in sorted(merged))
