"""Reader: the rows of one work unit, read where the work is done, as a table of requests.

Nobody after it knows which format the rows came from.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Protocol, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import types

from pipeline.preprocess.conversation import with_whole_paths
from pipeline.preprocess.pdf import is_pdf, page_uri
from pipeline.sources.arrow_types import BARE_BASE64, as_bytes, as_text, is_bytes, is_list, plain
from pipeline.sources.columns import Columns, Kept
from pipeline.sources.discover import Format
from pipeline.sources.kept import travel_field
from pipeline.sources.listing import Listing
from pipeline.sources.parquet import RowRange, by_row_group, dictionaries_of, halves, read_range
from pipeline.storage.backoff import WAITS_S, is_transient
from schemas.errors import Failure
from schemas.request import FAILURE, REQUEST_SCHEMA

KEEP = "keep:"  # before the names of the columns that ride along to the answers
WHOLE_READ_BYTES = 256 * 2**20
_SHOWN = 300  # characters of an error in a message
_IMAGES = REQUEST_SCHEMA.field("images").type
_NOT_RELATIVE = r"^([A-Za-z][A-Za-z0-9+.-]*://|/|~|data:|file:/)"


class UnitReader(Protocol):
    """From the number of a unit to its table; with a failure nothing is read, every row has it."""

    def __call__(self, unit: int, failure: Failure | None = None) -> pa.Table: ...


def unit_reader(listing: Listing) -> UnitReader:
    """A picklable reader of these units, see `read_unit`."""
    return partial(_read_numbered, replace(listing, files=listing.files.slice(0, 0)))


def read_unit(
    row_ranges: pa.Table,
    columns: Columns,
    format: Format,
    whole_read_bytes: int = WHOLE_READ_BYTES,
    failure: Failure | None = None,
) -> pa.Table:
    """Return the rows of a unit: REQUEST_SCHEMA's columns, then `keep:<name>` for every kept column as it travels.

    A row whose image is null or empty has one image with neither bytes nor URI. Row groups of more than
    `whole_read_bytes` are streamed page by page: a unit of a few rows must not cost all their memory. What cannot be
    read (a damaged row group, a file that is gone, a text that is no text) are rows with a failure; with `failure` all
    rows have that one.
    """
    schema = pa.schema([*REQUEST_SCHEMA, *(travel_field(KEEP + kept.name, kept.type) for kept in columns.keep)])
    if format == "images":
        return _image_files(row_ranges, failure).cast(schema)
    source = _Source(columns=columns, schema=schema, whole_read_bytes=whole_read_bytes)
    rows = row_ranges.select(["url", "name", "start", "num_rows"]).to_pylist()
    tables = [
        table
        for row_range in (RowRange(**row) for row in rows)
        for table in ([source.failed(row_range, failure)] if failure else source.tables(row_range))
    ]
    return pa.concat_tables(tables)


def read_ids(row_range: RowRange, name: str) -> Iterator[tuple[int, pa.ChunkedArray]]:
    """The ids of a file's rows, each part with its position; raises OSError and ArrowException."""
    done = row_range.start
    for batch in read_range(row_range, [name], WHOLE_READ_BYTES):
        rows = _Rows(url=row_range.url, name=row_range.name, first=done, batch=batch)
        yield done, _ids(rows, name, _Reading(rows))
        done += batch.num_rows


def _read_numbered(listing: Listing, unit: int, failure: Failure | None = None) -> pa.Table:
    return read_unit(listing.unit(unit), listing.columns, listing.format, failure=failure)


def _image_files(row_ranges: pa.Table, failure: Failure | None) -> pa.Table:
    names, urls = (pa.array(_rows_of(row_ranges, column), pa.string()) for column in ("name", "url"))
    images = _one_image_a_row(pa.nulls(len(urls), pa.large_binary()), urls)
    asked = [pa.nulls(len(urls), pa.string())] * 2
    rest = [_values([], [], len(urls)), _failures(failure, len(urls)), pa.nulls(len(urls), pa.string())]
    return pa.table([names, images, *asked, *rest], names=REQUEST_SCHEMA.names)


def _rows_of(row_ranges: pa.Table, column: str) -> Iterator[str]:
    """This column of the row ranges' files, for every row; that of a PDF's page with the page's number."""
    for row_range in row_ranges.select([column, "start", "num_rows"]).to_pylist():
        pages = range(row_range["start"] + 1, row_range["start"] + 1 + row_range["num_rows"])
        yield from (
            (page_uri(row_range[column], page) for page in pages) if is_pdf(row_range[column]) else [row_range[column]]
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rows:
    """Rows as they are in their file; `first` is the position of the first in it."""

    url: str
    name: str
    first: int
    batch: pa.RecordBatch

    @property
    def folder(self) -> str:
        """Where their file is: what its relative paths begin at."""
        return self.url.rsplit("/", 1)[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Source:
    """How the row ranges of Parquet files become rows of `schema`."""

    columns: Columns
    schema: pa.Schema
    whole_read_bytes: int
    as_stored: frozenset[str] = frozenset()  # columns whose Arrow type is not looked at, see `read_range`

    def tables(self, row_range: RowRange) -> list[pa.Table]:
        """The range's rows; where it cannot be read as a whole, those of each row group that can, and failed ones."""
        try:
            return self._read(row_range)
        except (OSError, pa.ArrowException) as error:
            if isinstance(error, MemoryError):  # no row's fault
                raise
            dictionaries = self._dictionaries(row_range) if _is_no_text(error) else frozenset()
            if dictionaries > self.as_stored:
                return replace(self, as_stored=dictionaries).tables(row_range)
            parts = [row_range] if is_transient(error) else self._parts(row_range, error)
            if len(parts) > 1:
                return [table for part in parts for table in self.tables(part)]
            return [self.failed(row_range, _why(row_range, error), self._ids_alone(row_range))]

    def _parts(self, row_range: RowRange, error: OSError | pa.ArrowException) -> list[RowRange]:
        """What is tried by itself: row groups, and fewer rows where Arrow cannot decode so many at once."""
        too_many = isinstance(error, pa.ArrowNotImplementedError) and "chunked array" in str(error)
        return halves(row_range) if too_many else by_row_group(row_range)

    def _dictionaries(self, row_range: RowRange) -> frozenset[str]:
        """Columns of which Arrow decodes the texts while it reads a row group: one that is none costs them all."""
        try:
            return dictionaries_of(row_range, self.columns.used())
        except (OSError, pa.ArrowException):
            return frozenset()

    def failed(self, row_range: RowRange, failure: Failure | None, ids: pa.Array | None = None) -> pa.Table:
        """Rows of which nothing is known but their ids, or else their places."""
        made = _made_ids(row_range.name, row_range.start, row_range.num_rows)
        nothing = pa.table([pa.nulls(row_range.num_rows, field.type) for field in self.schema], names=self.schema.names)
        columns = {
            "id": made if ids is None else pc.coalesce(ids, made),
            "images": pa.array([[]] * row_range.num_rows, _IMAGES),
            "values": _values([], [], row_range.num_rows),
            "failure": _failures(failure, row_range.num_rows),
        }
        for name, column in columns.items():
            nothing = nothing.set_column(nothing.column_names.index(name), name, column)
        return nothing.cast(self.schema)

    def _read(self, row_range: RowRange) -> list[pa.Table]:
        """All of it, in as many tables as Arrow likes."""
        tables: list[pa.Table] = []
        done = 0
        for batch in read_range(row_range, self.columns.used(), self.whole_read_bytes, self.as_stored):
            rows = _Rows(url=row_range.url, name=row_range.name, first=row_range.start + done, batch=batch)
            tables.append(pa.table(_columns_of(rows, self.columns), schema=self.schema))
            done += batch.num_rows
        if done < row_range.num_rows:
            there = f"it has {row_range.start + done}"
            raise OSError(
                f"the file must have at least {row_range.start + row_range.num_rows} rows as when listed, {there}"
            )
        return tables

    def _ids_alone(self, row_range: RowRange) -> pa.Array | None:
        """The id column of rows of which another column cannot be read; None where it cannot either."""
        if self.columns.id is None:
            return None
        alone = replace(self, columns=Columns(id=self.columns.id), schema=REQUEST_SCHEMA)
        try:
            return pa.concat_tables(alone._read(row_range)).column("id").combine_chunks()
        except (OSError, pa.ArrowException):
            return None


def _why(row_range: RowRange, error: OSError | pa.ArrowException) -> Failure:
    """What a person is told of rows that cannot be read."""
    said = str(error) if len(str(error)) <= _SHOWN else f"{str(error)[:_SHOWN]}..."
    if isinstance(error, FileNotFoundError):
        return Failure(stage="read", type="FileNotFound", message=f"{row_range} are not there any more: {said}")
    if isinstance(error, PermissionError):
        return Failure(stage="read", type="PermissionDenied", message=f"{row_range} may not be read: {said}")
    if is_transient(error):
        tries = f"{len(WAITS_S) + 1} tries"
        return Failure(stage="read", type="ReadFailed", message=f"{row_range} could not be read in {tries}: {said}")
    if _is_no_text(error):
        return Failure(
            stage="read", type="InvalidText", message=f"{row_range} must be UTF-8 text: {said}; write it anew"
        )
    message = f"{row_range} cannot be read: {said}; put the file back as it was, then retry them"
    return Failure(stage="read", type="BrokenFile", message=message)


def _columns_of(rows: _Rows, columns: Columns) -> list[pa.Array | pa.ChunkedArray]:
    """The columns of a table of requests. A row of which a value cannot be used keeps the others, and has a failure."""
    reading = _Reading(rows)
    ids = _ids(rows, columns.id, reading)
    prompt = reading.texts(columns.prompt)
    messages = reading.column(columns.messages, lambda column, _: _messages(column, rows.folder), _NO_TEXT)
    values = _values(columns.values, [reading.texts(name) for name in columns.values], len(rows.batch))
    kept = [reading.kept(one) for one in columns.keep]
    images = reading.column(
        columns.image, partial(_images, folder=rows.folder, may_lack=messages.is_valid()), _NO_IMAGE
    )
    tables = pa.repeat(rows.url, len(rows.batch))
    return [ids, images, prompt, messages, values, reading.failures(), tables, *kept]


_NO_TEXT = pa.nulls(1, pa.string())
_NO_IMAGE = pa.array([[]], _IMAGES)
_Convert: TypeAlias = Callable[[pa.Array, int], pa.Array]  # some values of a column, and the position of the first


class _Reading:
    """Converts the columns of some rows, and remembers the rows that have a value which cannot be used."""

    def __init__(self, rows: _Rows) -> None:
        self._rows = rows
        self._bad: dict[int, Failure] = {}

    def texts(self, name: str | None) -> pa.ChunkedArray:
        """A column as strings."""
        return self.column(name, lambda column, _: as_text(column), _NO_TEXT)

    def kept(self, kept: Kept) -> pa.ChunkedArray:
        """A column as it travels."""
        type = travel_field(kept.name, kept.type).type
        return self.column(kept.column, lambda column, _: plain(column).cast(type), pa.nulls(1, type))

    def column(self, name: str | None, convert: _Convert, nothing: pa.Array) -> pa.ChunkedArray:
        """What a column is converted to, `nothing` in place of a bad value; all of it where there is no such column."""
        if name is None:
            return pa.chunked_array([pa.concat_arrays([nothing] * len(self._rows.batch))])
        column = self._rows.batch.column(name)
        if not isinstance(column.type, pa.BaseExtensionType):
            column = plain(column)  # a slice of a dictionary would still have all of its texts
        parts = self._parts(column, 0, partial(_checked, convert), partial(_bad_value, self._rows, name))
        return pa.chunked_array([nothing if part is None else part for part in parts], nothing.type)

    def failures(self) -> pa.Array:
        """Why rows cannot be answered; null where they can."""
        failures = [self._bad.get(row) for row in range(len(self._rows.batch))]
        return pa.array([failure and asdict(failure) for failure in failures], FAILURE)

    def _parts(
        self, column: pa.Array, first: int, convert: _Convert, blame: Callable[[int, Exception], Failure]
    ) -> Iterator[pa.Array | None]:
        """The column converted; halved, in memory, down to the values that cannot be: None each."""
        try:
            converted = convert(column, first)
        except (ValueError, OverflowError, KeyError) as error:  # ArrowInvalid is a ValueError; a missing kernel is none
            if len(column) == 1:
                self._bad.setdefault(first, blame(first, error))
                yield None
                return
            middle = len(column) // 2
            yield from self._parts(_cut(column, 0, middle), first, convert, blame)
            yield from self._parts(_cut(column, middle, len(column)), first + middle, convert, blame)
        else:
            yield converted


def _checked(convert: _Convert, column: pa.Array, first: int) -> pa.Array:
    column.validate(full=True)  # a text that is none would end the run where it is looked at
    return convert(column, first)


def _cut(column: pa.Array, start: int, stop: int) -> pa.Array:
    """A slice; of nested values a copy, which has no others than its own below."""
    part = column.slice(start, stop - start)
    return pa.concat_arrays([part, part[:0]]) if types.is_nested(part.type) else part


def _bad_value(rows: _Rows, name: str, row: int, error: Exception) -> Failure:
    is_text = _is_no_text(error)
    wanted = "UTF-8 text" if is_text else "a value of its type"
    where = f"column {name!r} in row {rows.first + row} of {rows.url}"
    message = f"{where} must be {wanted}: {str(error)[:_SHOWN]}; write it anew"
    return Failure(stage="read", type="InvalidText" if is_text else "InvalidValue", message=message)


def _is_no_text(error: Exception) -> bool:
    """Whether Arrow found text that is not UTF-8; that of a dictionary it finds while it decodes a row group."""
    return isinstance(error, UnicodeError) or (isinstance(error, pa.ArrowInvalid) and "UTF8" in str(error))


def _messages(column: pa.Array, folder: str) -> pa.Array:
    return _with_whole_paths(_as_json(column), folder)


def _as_json(messages: pa.Array) -> pa.Array:
    """JSON text as it is, structs as JSON text; null stays null."""
    if not is_list(messages.type):
        return as_text(messages)
    rows = plain(messages).to_pylist(maps_as_pydicts="strict")
    return pa.array([None if row is None else json.dumps(row, default=str) for row in rows], pa.string())


def _with_whole_paths(messages: pa.Array, folder: str) -> pa.Array:
    """JSON text in which the images that messages name are found from anywhere."""

    def whole(uri: str) -> str:
        return str(_resolve(pa.array([uri]), folder)[0])

    return pa.array([text and with_whole_paths(text, whole) for text in messages.to_pylist()], pa.string())


def _values(names: Sequence[str], columns: Sequence[pa.Array], num_rows: int) -> pa.Array:
    """One map a row from these names to the values of these columns."""
    rows = zip(*(column.to_pylist() for column in columns), strict=True) if columns else [()] * num_rows
    return pa.array([list(zip(names, row, strict=True)) for row in rows], REQUEST_SCHEMA.field("values").type)


def _images(column: pa.Array, first: int, folder: str, may_lack: pa.ChunkedArray) -> pa.Array:
    """The images of each row, in order; one image that is null where there are none, unless it may lack them."""
    column = plain(column)
    if not is_list(column.type) or is_bytes(column.type):
        return _one_image_a_row(*_data_and_uri(column, folder))
    lists = column.cast(pa.large_list(column.type.value_type))
    some = pc.greater(lists.value_lengths(), 0)  # null for null
    may_lack = may_lack.slice(first, len(lists)).combine_chunks()
    fine = pc.fill_null(pc.or_(some, may_lack), False)
    lists = lists if pc.all(fine).as_py() else pc.if_else(fine, lists, pa.array([[None]], lists.type)[0])
    images = _image_structs(*_data_and_uri(lists.flatten(), folder))
    offsets = np.concatenate([[0], np.cumsum(lists.value_lengths().to_numpy())]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), images, type=_IMAGES)


def _ids(rows: _Rows, name: str | None, reading: _Reading) -> pa.ChunkedArray:
    """The id column as strings; a row without one is called after its file and its position there."""
    made = _made_ids(rows.name, rows.first, len(rows.batch))
    return pc.coalesce(reading.texts(name), made)


def _made_ids(name: str, first: int, num_rows: int) -> pa.Array:
    positions = pa.array(np.arange(first, first + num_rows)).cast(pa.string())
    return pc.binary_join_element_wise(name, positions, ":")


def _failures(failure: Failure | None, num_rows: int) -> pa.Array:
    return pa.array([failure and asdict(failure)] * num_rows, FAILURE)


def _data_and_uri(image: pa.Array, folder: str) -> tuple[pa.Array, pa.Array]:
    """Bytes and URIs of an image column of any kind; a URI is null where there are bytes."""
    nothing = pa.nulls(len(image))
    if types.is_struct(image.type):
        data, uri = (_field(image, name) for name in ("bytes", "path"))
    else:
        data, uri = (image, nothing) if is_bytes(image.type) else (nothing, image)
    data = _without_empty(as_bytes(data))
    place = _resolve(_without_empty(as_text(uri)), folder)
    return data, pc.if_else(data.is_valid(), pa.scalar(None, pa.string()), place)


def _field(structs: pa.StructArray, name: str) -> pa.Array:
    return pc.struct_field(structs, name) if structs.type.get_field_index(name) >= 0 else pa.nulls(len(structs))


def _without_empty(values: pa.Array) -> pa.Array:
    """Null for empty; what has none is passed on without a copy."""
    empty = pc.equal(pc.binary_length(values), 0)
    return pc.if_else(empty, pa.scalar(None, values.type), values) if pc.any(empty).as_py() else values


def _resolve(uris: pa.Array, folder: str) -> pa.Array:
    """URIs as they are, paths relative to the Parquet file's folder made whole; base64 is no path."""
    below = pc.binary_join_element_wise(folder, pc.replace_substring_regex(uris, r"^(\./+)+", ""), "/")
    as_is = pc.or_(pc.match_substring_regex(uris, _NOT_RELATIVE), pc.match_substring_regex(uris, BARE_BASE64))
    return pc.if_else(as_is, uris, below)


def _one_image_a_row(data: pa.Array, uri: pa.Array) -> pa.Array:
    images = _image_structs(data, uri)
    offsets = pa.array(np.arange(len(images) + 1, dtype=np.int32))
    return pa.ListArray.from_arrays(offsets, images, type=_IMAGES)


def _image_structs(data: pa.Array, uri: pa.Array) -> pa.StructArray:
    return pa.StructArray.from_arrays([data, uri], fields=list(_IMAGES.value_type))
