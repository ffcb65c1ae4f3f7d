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

from pipeline.sources.arrow_types import as_bytes, as_text, is_bytes, is_list, plain
from pipeline.sources.columns import Columns, Kept
from pipeline.sources.kept import travel_field
from pipeline.sources.listing import FILES_SCHEMA, Listing
from pipeline.sources.named_images import folder_of, resolve
from pipeline.sources.open_files import OpenFiles
from pipeline.sources.source import RowRange, Rows, Source, Unread, made_ids, ranges_of
from pipeline.sources.unreadable import SHOWN, is_no_text, why_unread
from pipeline.storage import filesystem as fs
from schemas.errors import Failure
from schemas.request import FAILURE, REQUEST_SCHEMA

KEEP = "keep:"  # before the names of the columns that ride along to the answers
_IMAGES = REQUEST_SCHEMA.field("images").type


class UnitReader(Protocol):
    """From the number of a unit to its table; with a failure nothing is read, every row has it."""

    def __call__(self, unit: int, failure: Failure | None = None) -> pa.Table: ...

    def narrowed(self, unit: int) -> "UnitReader": ...  # to what a worker needs for this unit alone

    def using(self, files: OpenFiles) -> "UnitReader": ...  # which the worker keeps open from unit to unit


@dataclass(frozen=True, slots=True)
class ListingReader:
    """Reads the units of a listing, see `read_unit`."""

    listing: Listing

    def __call__(self, unit: int, failure: Failure | None = None) -> pa.Table:
        """Return the rows of a unit."""
        return read_unit(self.listing.unit(unit), self.listing.columns, self.listing.source, failure)

    def narrowed(self, unit: int) -> UnitReader:
        """Return a reader of this unit alone: some hundred bytes, however long the listing is."""
        ranges = tuple(ranges_of(self.listing.unit(unit)))
        return RangesReader(ranges=ranges, columns=self.listing.columns, source=self.listing.source)

    def using(self, files: OpenFiles) -> UnitReader:
        """Return the same, reading on in files that stay open."""
        return ListingReader(replace(self.listing, source=_using(self.listing.source, files)))


@dataclass(frozen=True, slots=True, kw_only=True)
class RangesReader:
    """Reads one unit, as plain records: these are pickled for every unit, by the one driver there is."""

    ranges: tuple[RowRange, ...]
    columns: Columns
    source: Source

    def __call__(self, unit: int, failure: Failure | None = None) -> pa.Table:
        """Return the rows of the unit."""
        return read_ranges(self.ranges, self.columns, self.source, failure)

    def narrowed(self, unit: int) -> UnitReader:
        """Return the same: it has one unit."""
        return self

    def using(self, files: OpenFiles) -> UnitReader:
        """Return the same, reading on in files that stay open."""
        return replace(self, source=_using(self.source, files))


def _using(source: Source, files: OpenFiles) -> Source:
    """Return the source, if its format is one that can read on."""
    using: Callable[[OpenFiles], Source] | None = getattr(source, "using", None)
    return source if using is None else using(files)


def unit_reader(listing: Listing) -> UnitReader:
    """Return a picklable reader of these units, see `read_unit`."""
    used = listing.columns.used()
    columns = replace(listing.columns, schema=pa.schema([one for one in listing.columns.schema if one.name in used]))
    return ListingReader(replace(listing, files=FILES_SCHEMA.empty_table(), listed=(), columns=columns))


def read_unit(row_ranges: pa.Table, columns: Columns, source: Source, failure: Failure | None = None) -> pa.Table:
    """Return the rows of a unit: REQUEST_SCHEMA's columns, then `keep:<name>` for every kept column as it travels.

    A row whose image is null or empty has one image with neither bytes nor URI. What cannot be read (a damaged row
    group, a file that is gone, a text that is no text) are rows with a failure; with `failure` all rows have that one.
    """
    return read_ranges(ranges_of(row_ranges), columns, source, failure)


def read_ranges(
    ranges: Sequence[RowRange], columns: Columns, source: Source, failure: Failure | None = None
) -> pa.Table:
    """Return the rows of these ranges, see `read_unit`."""
    schema = pa.schema([*REQUEST_SCHEMA, *(travel_field(KEEP + kept.name, kept.type) for kept in columns.keep)])
    if failure is None:
        return pa.concat_tables([_table_of(rows, columns, schema) for rows in source.read(ranges, columns)])
    ids = [rows for one in ranges for rows in source.read_ids(one, Columns())]
    return pa.concat_tables([_failed(rows.row_range.num_rows, rows.made_ids(), failure, schema) for rows in ids])


def requests_in(table: pa.Table, columns: Columns, name: str = "row") -> pa.Table:
    """Return the rows of a table in memory as `read_unit` returns those of files, without kept columns.

    Rows without an id are called `name:number`; relative paths begin at the folder that this process is in.
    """
    url, start, tables = fs.absolute(name), 0, [REQUEST_SCHEMA.empty_table()]
    for batch in table.select(columns.used()).to_batches():
        row_range = RowRange(url=url, name=name, start=start, num_rows=batch.num_rows)
        tables.append(_table_of(Rows(row_range=row_range, batch=batch), columns, REQUEST_SCHEMA))
        start += batch.num_rows
    return pa.concat_tables(tables)


def read_ids(source: Source, row_range: RowRange, columns: Columns) -> Iterator[tuple[int, pa.ChunkedArray]]:
    """Yield the ids of a file's rows, each part with its first row; raise OSError and ArrowException."""
    for rows in source.read_ids(row_range, columns):
        yield rows.row_range.start, _Reading(rows).ids(columns.id)


def read_unit_ids(listing: Listing, unit: int) -> tuple[list[str], list[str]]:
    """Return the ids of a unit's rows, and in words why some of them cannot be read."""
    row_ranges, columns = listing.unit(unit), listing.columns.ids_alone()
    if columns.id is None:
        made = [read_ids(listing.source, one, columns) for one in ranges_of(row_ranges)]
        return [id for parts in made for _, ids in parts for id in ids.to_pylist()], []
    table = read_unit(row_ranges, columns, listing.source)
    unread = [failure["message"] for failure in table.column("failure").drop_null().to_pylist()]
    return table.column("id").to_pylist(), unread


def _table_of(rows: Rows | Unread, columns: Columns, schema: pa.Schema) -> pa.Table:
    if isinstance(rows, Unread):
        return _failed(rows.row_range.num_rows, _ids_of(rows), rows.failure, schema)
    try:
        return pa.table(_columns_of(rows, columns), schema=schema)
    except pa.ArrowException as error:  # columns of other types than when they were listed
        if isinstance(error, MemoryError):  # no row's fault
            raise
        ids = rows.batch.column(columns.id) if columns.id else None
        unread = Unread(row_range=rows.row_range, failure=why_unread(rows.row_range, error), ids=ids)
        return _table_of(unread, columns, schema)


def _ids_of(rows: Unread) -> pa.Array:
    """Return the ids of rows that cannot be read, as far as they are known."""
    made = made_ids(rows.row_range)
    if rows.ids is None:
        return made
    alone = Rows(row_range=rows.row_range, batch=pa.RecordBatch.from_arrays([rows.ids], names=["id"]))
    try:
        return _Reading(alone).ids("id")
    except pa.ArrowException:
        return made


def _failed(num_rows: int, ids: pa.Array, failure: Failure, schema: pa.Schema) -> pa.Table:
    """Return rows of which nothing is known but their ids."""
    nothing = pa.table([pa.nulls(num_rows, field.type) for field in schema], names=schema.names)
    columns = {
        "id": ids,
        "images": pa.array([[]] * num_rows, _IMAGES),
        "values": _values([], [], num_rows),
        "failure": pa.array([asdict(failure)] * num_rows, FAILURE),
    }
    for name, column in columns.items():
        nothing = nothing.set_column(nothing.column_names.index(name), name, column)
    return nothing.cast(schema)


def _columns_of(rows: Rows, columns: Columns) -> list[pa.Array | pa.ChunkedArray]:
    """Return the columns of a table of requests. A row with a value that cannot be used keeps the others, and fails."""
    reading, num_rows = _Reading(rows), rows.row_range.num_rows
    ids = reading.ids(columns.id)
    prompt = reading.texts(columns.prompt)
    messages = reading.column(columns.messages, lambda column, _: _as_json(column), _NO_TEXT)
    values = _values(columns.values, [reading.texts(name) for name in columns.values], num_rows)
    kept = [reading.kept(one) for one in columns.keep]
    if rows.images is None:
        folder = folder_of(rows.row_range.url, columns.image_root)
        find = partial(_images, folder=folder, may_lack=messages.is_valid())
        images, table = reading.column(columns.image, find, _NO_IMAGE), pa.repeat(rows.row_range.url, num_rows)
    else:
        images = _one_image_a_row(pa.nulls(num_rows, pa.large_binary()), rows.images)
        table = pa.nulls(num_rows, pa.string())
    options = reading.texts(columns.options)
    return [ids, images, prompt, messages, values, reading.failures(), table, options, *kept]


_NO_TEXT = pa.nulls(1, pa.string())
_NO_IMAGE = pa.array([[]], _IMAGES)
_Convert: TypeAlias = Callable[[pa.Array, int], pa.Array]  # some values of a column, and the position of the first


class _Reading:
    """Converts the columns of some rows, and remembers the rows that have a value which cannot be used."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows
        self._bad = dict(rows.failures)

    def ids(self, name: str | None) -> pa.ChunkedArray | pa.Array:
        """Return the id column as strings; a row without one is called after its file and its number there."""
        return self._rows.made_ids() if name is None else pc.coalesce(self.texts(name), self._rows.made_ids())

    def texts(self, name: str | None) -> pa.ChunkedArray:
        """Return a column as strings."""
        return self.column(name, lambda column, _: as_text(column), _NO_TEXT)

    def kept(self, kept: Kept) -> pa.ChunkedArray:
        """Return a column as it travels."""
        type = travel_field(kept.name, kept.type).type
        return self.column(kept.column, lambda column, _: plain(column).cast(type), pa.nulls(1, type))

    def column(self, name: str | None, convert: _Convert, nothing: pa.Array) -> pa.ChunkedArray:
        """Convert a column, with `nothing` for a bad value, or for all of it where there is no such column."""
        if name is None:
            return pa.chunked_array([pa.concat_arrays([nothing] * self._rows.row_range.num_rows)])
        column = self._rows.batch.column(name)
        if not isinstance(column.type, pa.BaseExtensionType):
            column = plain(column)  # a slice of a dictionary would still have all of its texts
        parts = self._parts(column, 0, partial(_checked, convert), partial(_bad_value, self._rows, name))
        return pa.chunked_array([nothing if part is None else part for part in parts], nothing.type)

    def failures(self) -> pa.Array:
        """Return why rows cannot be answered; null where they can."""
        failures = [self._bad.get(row) for row in range(self._rows.row_range.num_rows)]
        return pa.array([failure and asdict(failure) for failure in failures], FAILURE)

    def _parts(
        self, column: pa.Array, first: int, convert: _Convert, blame: Callable[[int, Exception], Failure]
    ) -> Iterator[pa.Array | None]:
        """Yield the column converted; halved, in memory, down to the values that cannot be: None each."""
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
    """Return a slice; of nested values a copy, which has no others than its own below."""
    part = column.slice(start, stop - start)
    return pa.concat_arrays([part, part[:0]]) if types.is_nested(part.type) else part


def _bad_value(rows: Rows, name: str, row: int, error: Exception) -> Failure:
    is_text = is_no_text(error)
    wanted = "UTF-8 text" if is_text else "a value of its type"
    where = f"column {name!r} in row {rows.row_range.start + row} of {rows.row_range.url}"
    message = f"{where} must be {wanted}: {str(error)[:SHOWN]}; write it anew"
    return Failure(stage="read", type="InvalidText" if is_text else "InvalidValue", message=message)


def _as_json(messages: pa.Array) -> pa.Array:
    """Return JSON text as it is, structs as JSON text; null stays null."""
    if not is_list(messages.type):
        return as_text(messages)
    rows = plain(messages).to_pylist(maps_as_pydicts="strict")
    return pa.array([None if row is None else json.dumps(row, default=str) for row in rows], pa.string())


def _values(names: Sequence[str], columns: Sequence[pa.Array], num_rows: int) -> pa.Array:
    """Return one map a row from these names to the values of these columns."""
    rows = zip(*(column.to_pylist() for column in columns), strict=True) if columns else [()] * num_rows
    return pa.array([list(zip(names, row, strict=True)) for row in rows], REQUEST_SCHEMA.field("values").type)


def _images(column: pa.Array, first: int, folder: str, may_lack: pa.ChunkedArray) -> pa.Array:
    """Return the images of each row, in order; one that is null where there are none, unless it may lack them."""
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


def _data_and_uri(image: pa.Array, folder: str) -> tuple[pa.Array, pa.Array]:
    """Return bytes and URIs of an image column of any kind; a URI is null where there are bytes."""
    nothing = pa.nulls(len(image))
    if types.is_struct(image.type):
        data, uri = (_field(image, name) for name in ("bytes", "path"))
    else:
        data, uri = (image, nothing) if is_bytes(image.type) else (nothing, image)
    data = _without_empty(as_bytes(data))
    whole = resolve(_without_empty(as_text(uri)), folder)
    return data, pc.if_else(data.is_valid(), pa.scalar(None, pa.string()), whole)


def _field(structs: pa.StructArray, name: str) -> pa.Array:
    return pc.struct_field(structs, name) if structs.type.get_field_index(name) >= 0 else pa.nulls(len(structs))


def _without_empty(values: pa.Array) -> pa.Array:
    """Put null for empty; what has none is passed on without a copy."""
    empty = pc.equal(pc.binary_length(values), 0)
    return pc.if_else(empty, pa.scalar(None, values.type), values) if pc.any(empty).as_py() else values


def _one_image_a_row(data: pa.Array, uri: pa.Array) -> pa.Array:
    images = _image_structs(data, uri)
    offsets = pa.array(np.arange(len(images) + 1, dtype=np.int32))
    return pa.ListArray.from_arrays(offsets, images, type=_IMAGES)


def _image_structs(data: pa.Array, uri: pa.Array) -> pa.StructArray:
    return pa.StructArray.from_arrays([data, uri], fields=list(_IMAGES.value_type))
