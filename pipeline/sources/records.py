"""Records: files whose rows are found by their bytes: texts of a row a line, archives. A format says where rows begin
and what is in them; here they are indexed, read and given types.
"""

import base64
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import IO, Any, Protocol, TypeAlias

import pyarrow as pa

from pipeline.sources.arrow_types import image_kind, is_binary, is_list, is_text
from pipeline.sources.columns import Columns
from pipeline.sources.convention import Convention
from pipeline.sources.source import FileRows, RowIndex, RowRange, Rows, Unread
from pipeline.sources.streams import opened
from pipeline.sources.unreadable import SHOWN, why_unread
from pipeline.storage.filesystem import FileInfo
from schemas.errors import Failure, Refused
from schemas.wording import one_line, printable

Record: TypeAlias = Mapping[str, Any]
FAILURE = "batch:failure"  # in a record of which something else, as its id, is known
LOOKED_AT = 256  # rows of a file from which the types of its columns are taken
LONGEST_ROW = 256 * 2**20  # bytes
_AT_ONCE = 8  # files indexed
_AHEAD = 64  # files indexed before it is looked whether --limit has its rows


class BadFile(Exception):
    """A file of which no rows can be told apart, and why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Indexed:
    """Holds what a format finds in a file: where rows begin, and the columns that they have."""

    index: RowIndex
    schema: pa.Schema


class RecordFormat(Protocol):
    """One format of records."""

    @property
    def name(self) -> str: ...

    @property
    def convention(self) -> Convention: ...

    def index(self, file: IO[bytes], limit: int | None) -> Indexed:
        """Find the rows of a file, or the first `limit` of them; raise BadFile and OSError."""
        ...

    def records(self, file: IO[bytes], row_range: RowRange, columns: Columns) -> Iterator[Record | Failure]:
        """Yield the rows of a range, at whose first byte the file is: values by column, or why there are none."""
        ...


@dataclass(frozen=True, slots=True)
class Records:
    """The source of files of records."""

    format: RecordFormat
    is_table: bool = True

    @property
    def name(self) -> str:
        """Return the name of the format."""
        return self.format.name

    @property
    def convention(self) -> Convention:
        """Return the names by which columns are found."""
        return self.format.convention

    def list(self, files: Sequence[FileInfo], limit: int | None) -> list[FileRows]:
        """Index all files, many at once, or the first ones that have `limit` rows together."""
        listed: list[FileRows] = []
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            for start in range(0, len(files), _AHEAD):
                listed += pool.map(partial(self._index, limit=limit), files[start : start + _AHEAD])
                if limit is not None and sum(file.num_rows for file in listed) >= limit:
                    break
        return listed

    def _index(self, file: FileInfo, limit: int | None) -> FileRows:
        try:
            with opened(file.url) as content:
                found = self.format.index(content, limit)
        except (BadFile, OSError) as error:
            raise Refused(f"{printable(file.url)} cannot be read as {self.name}: {one_line(error)}") from error
        num_rows = len(found.index.offsets) - 1
        return FileRows(url=file.url, num_rows=num_rows, schema=found.schema, index=found.index)

    def read(self, row_ranges: Sequence[RowRange], columns: Columns) -> Iterator[Rows | Unread]:
        """Yield the rows; those behind the byte at which a file cannot be read any more have a reason."""
        for row_range in row_ranges:
            rows = self._read(row_range, columns)
            yield rows
            done = rows.row_range.num_rows if isinstance(rows, Rows) else row_range.num_rows
            if done < row_range.num_rows:
                left = row_range.part(done, row_range.num_rows - done)
                there = f"it has {row_range.start + done}"
                error = OSError(f"the file must have its rows where they were when listed, {there}")
                yield Unread(row_range=left, failure=why_unread(left, error))

    def read_ids(self, row_range: RowRange, columns: Columns) -> Iterator[Rows]:
        """Yield the ids part by part."""
        if columns.id is None:
            yield Rows(row_range=row_range, batch=pa.RecordBatch.from_pydict({}))
            return
        with opened(row_range.url, row_range.offset) as file:
            rest = self.format.records(file, row_range, columns)
            for first in range(0, row_range.num_rows, _IDS_AT_ONCE):
                part = row_range.part(first, min(_IDS_AT_ONCE, row_range.num_rows - first))
                records = [record for record, _ in zip(rest, range(part.num_rows), strict=False)]
                yield rows_of(part, records, columns)

    def _read(self, row_range: RowRange, columns: Columns) -> Rows | Unread:
        """Return the rows that there are, maybe fewer than there were."""
        found: list[Record | Failure] = []
        try:
            with opened(row_range.url, row_range.offset) as file:
                for record in self.format.records(file, row_range, columns):
                    found.append(record)
        except OSError as error:
            if not found:
                return Unread(row_range=row_range, failure=why_unread(row_range, error))
            found += [why_unread(row_range, error)] * (row_range.num_rows - len(found))
        return rows_of(row_range.part(0, len(found)), found, columns)


_IDS_AT_ONCE = 65_536


def rows_of(row_range: RowRange, records: Sequence[Record | Failure], columns: Columns) -> Rows:
    """Return records as rows with the columns that are used, in the types that they were found to have."""
    plain: list[Record] = [{FAILURE: record} if isinstance(record, Failure) else record for record in records]
    found = ((row, record.get(FAILURE)) for row, record in enumerate(plain))
    failures = {row: one for row, one in found if isinstance(one, Failure)}  # and no value of a column of that name
    arrays = {}
    for name in columns.used():
        values, where = [record.get(name) for record in plain], partial(_bad, row_range, name)
        arrays[name] = _array(values, _maker(name, columns, values), failures, where)
    for row, record in enumerate(plain):
        late = [name for name in record if name.lower() in columns.missed and record[name] is not None]
        if late and row not in failures:
            failures[row] = _late(row_range, row, late[0])
    batch = pa.RecordBatch.from_pydict(arrays)
    return Rows(row_range=row_range, batch=batch, failures=failures)


_Make: TypeAlias = Callable[[list[Any]], pa.Array]


def _array(
    values: list[Any], make: _Make, failures: dict[int, Failure], bad: Callable[[int, Exception], Failure]
) -> pa.Array:
    """Return values as an array; one that does not fit is null and costs its row."""
    try:
        return make(values)
    except (pa.ArrowException, ValueError, TypeError, OverflowError):
        parts = []
    for row, value in enumerate(values):
        try:
            parts.append(make([value]))
        except (pa.ArrowException, ValueError, TypeError, OverflowError) as error:
            failures.setdefault(row, bad(row, error))
            parts.append(make([None]))
    return pa.concat_arrays(parts)


def _bad(row_range: RowRange, name: str, row: int, error: Exception) -> Failure:
    is_text = isinstance(error, UnicodeError)
    where = f"{name!r} of row {row_range.start + row} of {row_range.url}"
    wanted = "UTF-8 text" if is_text else "a value of its column's type"
    message = f"{where} must be {wanted}: {str(error)[:SHOWN]}; write it anew"
    return Failure(stage="read", type="InvalidText" if is_text else "InvalidValue", message=message)


def _late(row_range: RowRange, row: int, name: str) -> Failure:
    message = (
        f"row {row_range.start + row} of {row_range.url} has {name!r}, which none of the file's first {LOOKED_AT} rows "
        f"has: name it by a flag, as in --prompt-column {name}, or give it to one of the first rows"
    )
    return Failure(stage="read", type="UnexpectedColumn", message=message)


def _maker(name: str, columns: Columns, values: list[Any]) -> _Make:
    """Return what makes an array of these values of a column, or of any of them, by what it is used for."""
    kept = next((one.type for one in columns.keep if one.column == name), None)
    index = columns.schema.get_field_index(name)
    type = columns.schema.field(index).type if index >= 0 else pa.string()
    if name == columns.image_alone():
        return partial(_images, _image_type(is_binary(type.value_type if is_list(type) else type), values))
    if kept is None or is_text(kept):
        return _paths if name == columns.image else _texts
    if isinstance(kept, pa.JsonType):
        return lambda values: pa.ExtensionArray.from_storage(kept, _texts(values))
    return lambda values: pa.array(values, kept)


def _image_type(has_bytes: bool, values: list[Any]) -> pa.DataType:
    """Return the type of the images of some rows: structs where one of them has one."""
    if has_bytes:
        return pa.large_binary()
    each = (one for value in values for one in (value if isinstance(value, list) else (value,)))
    return _STRUCT if any(isinstance(one, dict) for one in each) else pa.large_string()


def _images(type: pa.DataType, values: list[Any]) -> pa.Array:
    """Return lists of images: a row may have one or several, whatever others have."""
    lists = [value if isinstance(value, list) or value is None else [value] for value in values]
    if type == _STRUCT:
        lists = [own and [_struct(one) for one in own] for own in lists]
    return pa.array(lists, pa.large_list(type))


def _struct(image: object) -> object:
    """Return an image as a struct. JSON has no bytes: they are base64 there."""
    if isinstance(image, str):
        return {"path": image}
    if isinstance(image, dict) and isinstance(image.get("bytes"), str):
        return {**image, "bytes": base64.b64decode(image["bytes"], validate=True)}
    return image


_STRUCT = pa.struct([("bytes", pa.large_binary()), ("path", pa.large_string())])


def _texts(values: list[Any]) -> pa.Array:
    return pa.array([value if value is None else as_text(value) for value in values], pa.large_string()).cast(
        pa.string()
    )


def _paths(values: list[Any]) -> pa.Array:
    """Return images' paths that are something else as well: then a row has one."""
    if any(value is not None and not isinstance(value, str) for value in values):
        raise ValueError("a path is wanted, as the column is not only the image")
    return _texts(values)


def as_text(value: object) -> str:
    """Return a value as text: a string as it is, bytes decoded, anything else as JSON, which has no NaN."""
    if isinstance(value, str):
        return value
    if isinstance(value, bytes):
        return value.decode()
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def good(records: Iterable[Record | Failure]) -> list[Record]:
    """Return the rows that can be read; raise BadFile where there are rows and none of them can."""
    found = list(records)
    rows = [row for row in found if not isinstance(row, Failure)]
    if found and not rows:
        first = next(row.message for row in found if isinstance(row, Failure))
        raise BadFile(f"none of its first {len(found)} rows can be read: {first}")
    return rows


def schema_of(records: Iterable[Record]) -> pa.Schema:
    """Return the columns of some records with the types that all of their values have."""
    values: dict[str, list[Any]] = {}
    for record in records:
        for name, value in record.items():
            values.setdefault(name, []).append(value)
    return pa.schema([pa.field(name, _type_of(own)) for name, own in values.items()])


def _type_of(values: list[Any]) -> pa.DataType:
    there = [value for value in values if value is not None]
    kinds = {type(value) for value in there}
    if not kinds:
        return pa.null()
    for known, arrow in _SCALARS:
        if kinds <= known:
            return arrow if arrow != pa.int64() or all(-(2**63) <= value < 2**63 for value in there) else pa.string()
    if kinds <= {list}:
        return _type_of_lists(there)
    if kinds == {str, list} and image_kind(_type_of_lists([one for one in there if isinstance(one, list)])):
        return pa.list_(pa.string())
    if kinds == {dict} and all(value.keys() <= {"bytes", "path"} and "path" in value for value in there):
        return pa.struct([("path", pa.string())])
    return pa.json_() if kinds & {list, dict} else pa.string()


_SCALARS: tuple[tuple[set[type], pa.DataType], ...] = (
    ({str}, pa.string()),
    ({bool}, pa.bool_()),
    ({int}, pa.int64()),
    ({int, float}, pa.float64()),
    ({bytes}, pa.large_binary()),
)


def _type_of_lists(lists: list[list[Any]]) -> pa.DataType:
    items = [item for own in lists for item in own if item is not None]
    if all(isinstance(item, str) for item in items):
        return pa.list_(pa.string())
    if all(isinstance(item, dict) for item in items):
        for names in (("role", "content"), ("from", "value")):
            if all(item.keys() >= set(names) for item in items):
                return pa.list_(pa.struct([(name, pa.string()) for name in names]))
    return pa.json_()
