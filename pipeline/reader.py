"""Reader: the rows of one work unit, read where the work is done, as a table of requests.

Nobody after it knows which format the rows came from.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import types

from pipeline.column_types import is_list, is_text
from pipeline.columns import Columns
from pipeline.listing import Format
from pipeline.patience import WAITS_S, is_transient
from pipeline.pieces import Piece, by_row_group, read_piece
from pipeline.preprocess.conversation import with_whole_paths
from pipeline.preprocess.pdf import is_pdf, page_uri
from pipeline.sources import Listing
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
    pieces: pa.Table,
    columns: Columns,
    format: Format,
    whole_read_bytes: int = WHOLE_READ_BYTES,
    failure: Failure | None = None,
) -> pa.Table:
    """The rows of a unit's pieces: REQUEST_SCHEMA's columns, then `keep:<name>` for every kept column, types as read.

    A row whose image is null or empty has one image with neither bytes nor URI. Row groups of more than
    `whole_read_bytes` are streamed page by page: a unit of a few rows must not cost all their memory. What cannot be
    read (a damaged row group, a file that is gone) are rows with a failure; with `failure` all rows have that one.
    """
    schema = pa.schema([*REQUEST_SCHEMA, *(pa.field(KEEP + kept.name, kept.type) for kept in columns.keep)])
    if format == "images":
        return _image_files(pieces, failure).cast(schema)
    source = _Source(columns=columns, schema=schema, whole_read_bytes=whole_read_bytes)
    rows = pieces.select(["url", "name", "start", "num_rows"]).to_pylist()
    tables = [
        table
        for piece in (Piece(**row) for row in rows)
        for table in ([source.failed(piece, failure)] if failure else source.tables(piece))
    ]
    return pa.concat_tables(tables).unify_dictionaries()


def _read_numbered(listing: Listing, unit: int, failure: Failure | None = None) -> pa.Table:
    return read_unit(listing.unit(unit), listing.columns, listing.format, failure=failure)


def _image_files(pieces: pa.Table, failure: Failure | None) -> pa.Table:
    names, urls = (pa.array(_rows_of(pieces, column), pa.string()) for column in ("name", "url"))
    images = _one_image_a_row(pa.nulls(len(urls), pa.large_binary()), urls)
    asked = [pa.nulls(len(urls), pa.string())] * 2
    rest = [_values([], [], len(urls)), _failures(failure, len(urls)), pa.nulls(len(urls), pa.string())]
    return pa.table([names, images, *asked, *rest], names=REQUEST_SCHEMA.names)


def _rows_of(pieces: pa.Table, column: str) -> Iterator[str]:
    """This column of the pieces' files, for every row; that of a PDF's page with the page's number."""
    for piece in pieces.select([column, "start", "num_rows"]).to_pylist():
        pages = range(piece["start"] + 1, piece["start"] + 1 + piece["num_rows"])
        yield from (page_uri(piece[column], page) for page in pages) if is_pdf(piece[column]) else [piece[column]]


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
    """How the pieces of Parquet files become rows of `schema`."""

    columns: Columns
    schema: pa.Schema
    whole_read_bytes: int

    def tables(self, piece: Piece) -> list[pa.Table]:
        """The piece's rows; where it cannot be read as a whole, those of each row group that can, and failed ones."""
        try:
            return self._read(piece)
        except (OSError, pa.ArrowException) as error:
            if isinstance(error, MemoryError):  # no row's fault
                raise
            parts = [piece] if is_transient(error) else by_row_group(piece)
            if len(parts) > 1:
                return [table for part in parts for table in self.tables(part)]
            return [self.failed(piece, _why(piece, error), self._ids_alone(piece))]

    def failed(self, piece: Piece, failure: Failure | None, ids: pa.Array | None = None) -> pa.Table:
        """Rows of which nothing is known but their ids, or else their places."""
        made = _made_ids(piece.name, piece.start, piece.num_rows)
        nothing = pa.table([pa.nulls(piece.num_rows, field.type) for field in self.schema], names=self.schema.names)
        columns = {
            "id": made if ids is None else pc.coalesce(ids, made),
            "images": pa.array([[]] * piece.num_rows, _IMAGES),
            "values": _values([], [], piece.num_rows),
            "failure": _failures(failure, piece.num_rows),
        }
        for name, column in columns.items():
            nothing = nothing.set_column(nothing.column_names.index(name), name, column)
        return nothing.cast(self.schema)

    def _read(self, piece: Piece) -> list[pa.Table]:
        """All of it, in as many tables as Arrow likes."""
        tables, done = [], 0
        for batch in read_piece(piece, self.columns.used(), self.whole_read_bytes):
            rows = _Rows(url=piece.url, name=piece.name, first=piece.start + done, batch=batch)
            tables.append(pa.table(_columns_of(rows, self.columns), schema=self.schema))
            done += batch.num_rows
        if done < piece.num_rows:
            there = f"it has {piece.start + done}"
            raise OSError(f"the file must have at least {piece.start + piece.num_rows} rows as when listed, {there}")
        return tables

    def _ids_alone(self, piece: Piece) -> pa.Array | None:
        """The id column of rows of which another column cannot be read; None where it cannot either."""
        if self.columns.id is None:
            return None
        try:
            found = pa.Table.from_batches(list(read_piece(piece, [self.columns.id], self.whole_read_bytes)))
        except (OSError, pa.ArrowException):
            return None
        ids = found.column(0).cast(pa.string()).combine_chunks()
        return ids if len(ids) == piece.num_rows else None


def _why(piece: Piece, error: OSError | pa.ArrowException) -> Failure:
    """What a person is told of rows that cannot be read."""
    said = str(error) if len(str(error)) <= _SHOWN else f"{str(error)[:_SHOWN]}..."
    if isinstance(error, FileNotFoundError):
        return Failure(stage="read", type="FileNotFound", message=f"{piece} are not there any more: {said}")
    if isinstance(error, PermissionError):
        return Failure(stage="read", type="PermissionDenied", message=f"{piece} may not be read: {said}")
    if is_transient(error):
        tries = f"{len(WAITS_S) + 1} tries"
        return Failure(stage="read", type="ReadFailed", message=f"{piece} could not be read in {tries}: {said}")
    message = f"{piece} cannot be read: {said}; put the file back as it was, then retry them"
    return Failure(stage="read", type="BrokenFile", message=message)


def _columns_of(rows: _Rows, columns: Columns) -> list[pa.Array]:
    batch = rows.batch
    prompt, messages = pa.nulls(len(batch), pa.string()), pa.nulls(len(batch), pa.string())
    if columns.prompt is not None:
        prompt = batch.column(columns.prompt).cast(pa.string())
    if columns.messages is not None:
        messages = _with_whole_paths(_as_json(batch.column(columns.messages)), rows.folder)
    values = [batch.column(name).cast(pa.string()) for name in columns.values]
    kept = [batch.column(kept.column).cast(kept.type) for kept in columns.keep]
    asked = [prompt, messages, _values(columns.values, values, len(batch))]
    rest = [_failures(None, len(batch)), pa.repeat(rows.url, len(batch))]
    return [_ids(rows, columns.id), _images(rows, columns.image), *asked, *rest, *kept]


def _as_json(messages: pa.Array) -> pa.Array:
    """JSON text as it is, structs as JSON text; null stays null."""
    if is_text(messages.type) or types.is_null(messages.type):
        return messages.cast(pa.string())
    rows = messages.to_pylist()
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


def _images(rows: _Rows, name: str | None) -> pa.Array:
    """The images of each row, in order; a row whose list is null has one image that is null, as with single images."""
    if name is None:
        return pa.array([[]] * len(rows.batch), _IMAGES)
    column = rows.batch.column(name)
    if not is_list(column.type):
        return _one_image_a_row(*_data_and_uri(column, rows.folder))
    column = column.cast(pa.list_(column.type.value_type))
    column = pc.if_else(column.is_valid(), column, pa.array([[None]], column.type)[0])
    images = _image_structs(*_data_and_uri(column.flatten(), rows.folder))
    offsets = np.cumsum([0, *column.value_lengths().to_pylist()], dtype=np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), images, type=_IMAGES)


def _ids(rows: _Rows, name: str | None) -> pa.Array:
    """The id column as strings; a row without one is called after its file and its position there."""
    made = _made_ids(rows.name, rows.first, len(rows.batch))
    return made if name is None else pc.coalesce(rows.batch.column(name).cast(pa.string()), made)


def _made_ids(name: str, first: int, num_rows: int) -> pa.Array:
    positions = pa.array(np.arange(first, first + num_rows)).cast(pa.string())
    return pc.binary_join_element_wise(name, positions, ":")


def _failures(failure: Failure | None, num_rows: int) -> pa.Array:
    return pa.array([failure and asdict(failure)] * num_rows, FAILURE)


def _data_and_uri(image: pa.Array, folder: str) -> tuple[pa.Array, pa.Array]:
    """Bytes and URIs of an image column of any kind; a URI is null where there are bytes."""
    nothing = pa.nulls(len(image))
    data, uri = nothing, nothing
    if types.is_struct(image.type):
        data, uri = (_field(image, name) for name in ("bytes", "path"))
    elif types.is_binary(image.type) or types.is_large_binary(image.type):
        data = image
    else:
        uri = image
    data = _without_empty(data.cast(pa.large_binary()))
    place = _resolve(_without_empty(uri.cast(pa.string())), folder)
    return data, pc.if_else(data.is_valid(), pa.scalar(None, pa.string()), place)


def _field(structs: pa.StructArray, name: str) -> pa.Array:
    return pc.struct_field(structs, name) if structs.type.get_field_index(name) >= 0 else pa.nulls(len(structs))


def _without_empty(values: pa.Array) -> pa.Array:
    """Null for empty; what has none is passed on without a copy."""
    empty = pc.equal(pc.binary_length(values), 0)
    return pc.if_else(empty, pa.scalar(None, values.type), values) if pc.any(empty).as_py() else values


def _resolve(uris: pa.Array, folder: str) -> pa.Array:
    """URIs as they are, paths relative to the Parquet file's folder made whole."""
    below = pc.binary_join_element_wise(folder, pc.replace_substring_regex(uris, r"^(\./+)+", ""), "/")
    return pc.if_else(pc.match_substring_regex(uris, _NOT_RELATIVE), uris, below)


def _one_image_a_row(data: pa.Array, uri: pa.Array) -> pa.Array:
    images = _image_structs(data, uri)
    offsets = pa.array(np.arange(len(images) + 1, dtype=np.int32))
    return pa.ListArray.from_arrays(offsets, images, type=_IMAGES)


def _image_structs(data: pa.Array, uri: pa.Array) -> pa.StructArray:
    return pa.StructArray.from_arrays([data, uri], fields=list(_IMAGES.value_type))
