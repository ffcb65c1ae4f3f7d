"""Reader: the rows of one work unit, read where the work is done, as a table of requests.

Nobody after it knows which format the rows came from.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import types

from pipeline import storage
from pipeline.column_types import is_list, is_text
from pipeline.columns import Columns
from pipeline.listing import Format
from pipeline.preprocess.pdf import is_pdf, page_uri
from pipeline.sources import Listing
from schemas.request import REQUEST_SCHEMA

KEEP = "keep:"  # before the names of the columns that ride along to the answers
WHOLE_READ_BYTES = 256 * 2**20
_STREAM_BUFFER_BYTES = 8 * 2**20
_IMAGES = REQUEST_SCHEMA.field("images").type
_NOT_RELATIVE = r"^([A-Za-z][A-Za-z0-9+.-]*://|/|~|data:)"


def unit_reader(listing: Listing) -> Callable[[int], pa.Table]:
    """A picklable function from the number of a unit to its table, see `read_unit`."""
    return partial(_read_numbered, replace(listing, files=listing.files.slice(0, 0)))


def read_unit(pieces: pa.Table, columns: Columns, format: Format, whole_read_bytes: int = WHOLE_READ_BYTES) -> pa.Table:
    """The rows of a unit's pieces: REQUEST_SCHEMA's columns, then `keep:<name>` for every kept column, types as read.

    A row whose image is null or empty has one image with neither bytes nor URI. Row groups of more than
    `whole_read_bytes` are streamed page by page: a unit of a few rows must not cost all their memory.
    """
    schema = pa.schema([*REQUEST_SCHEMA, *(pa.field(KEEP + kept.name, kept.type) for kept in columns.keep)])
    if format == "images":
        return _image_files(pieces).cast(schema)
    tables = [
        pa.table(_columns_of(rows, columns), schema=schema)
        for piece in pieces.to_pylist()
        for rows in _read_piece(piece, columns.used(), whole_read_bytes)
    ]
    return pa.concat_tables(tables).unify_dictionaries()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rows:
    """Some rows of a Parquet file as they are there; `first` is the position of their first row in it."""

    url: str
    name: str
    first: int
    batch: pa.RecordBatch


def _read_numbered(listing: Listing, number: int) -> pa.Table:
    return read_unit(listing.unit(number), listing.columns, listing.format)


def _image_files(pieces: pa.Table) -> pa.Table:
    names, urls = (pa.array(_rows_of(pieces, column), pa.string()) for column in ("name", "url"))
    images = _one_image_a_row(pa.nulls(len(urls), pa.large_binary()), urls)
    asked = [pa.nulls(len(urls), pa.string())] * 2
    return pa.table([names, images, *asked, _values([], [], len(urls))], names=REQUEST_SCHEMA.names)


def _rows_of(pieces: pa.Table, column: str) -> Iterator[str]:
    """This column of the pieces' files, for every row; that of a PDF's page with the page's number."""
    for piece in pieces.select([column, "start", "num_rows"]).to_pylist():
        pages = range(piece["start"] + 1, piece["start"] + 1 + piece["num_rows"])
        yield from (page_uri(piece[column], page) for page in pages) if is_pdf(piece[column]) else [piece[column]]


def _read_piece(piece: dict[str, object], names: list[str], whole_read_bytes: int) -> Iterator[_Rows]:
    """The rows of one piece, in as many batches as Arrow likes. Raises OSError where they cannot be read."""
    url, start, num_rows = str(piece["url"]), int(str(piece["start"])), int(str(piece["num_rows"]))
    done = 0
    try:
        for batch in _read_range(url, start, num_rows, names, whole_read_bytes):
            yield _Rows(url=url, name=str(piece["name"]), first=start + done, batch=batch)
            done += batch.num_rows
    except (OSError, pa.ArrowException) as error:
        raise OSError(f"cannot read rows {start} to {start + num_rows - 1} of {url}: {error}") from error
    if done < num_rows:
        raise OSError(f"{url} must have at least {start + num_rows} rows as when it was listed, it has {start + done}")


def _read_range(
    url: str, start: int, num_rows: int, names: list[str], whole_read_bytes: int
) -> Iterator[pa.RecordBatch]:
    with storage.open_url(url) as file:
        metadata = pq.read_metadata(file)
        groups, skip = _row_groups(metadata, start, num_rows)
        whole = max((metadata.row_group(group).total_byte_size for group in groups), default=0) <= whole_read_bytes
        options = {"pre_buffer": True} if whole else {"pre_buffer": False, "buffer_size": _STREAM_BUFFER_BYTES}
        with pq.ParquetFile(file, metadata=metadata, **options) as parquet:
            left = num_rows
            for batch in parquet.iter_batches(num_rows, row_groups=groups, columns=names, use_threads=False):
                wanted = batch.slice(skip, left)
                skip -= min(skip, batch.num_rows)
                left -= wanted.num_rows
                if wanted.num_rows:
                    yield wanted
                if not left:
                    return


def _row_groups(metadata: pq.FileMetaData, start: int, num_rows: int) -> tuple[list[int], int]:
    """The row groups that hold these rows, and how many rows of the first come before them."""
    ends = np.cumsum([metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)], dtype=np.int64)
    first, last = np.searchsorted(ends, [start, start + num_rows - 1], side="right")
    before = int(ends[first - 1]) if first else 0
    return list(range(first, min(last + 1, len(ends)))), start - before


def _columns_of(rows: _Rows, columns: Columns) -> list[pa.Array]:
    batch = rows.batch
    prompt, messages = pa.nulls(len(batch), pa.string()), pa.nulls(len(batch), pa.string())
    if columns.prompt is not None:
        prompt = batch.column(columns.prompt).cast(pa.string())
    if columns.messages is not None:
        messages = _as_json(batch.column(columns.messages))
    values = [batch.column(name).cast(pa.string()) for name in columns.values]
    kept = [batch.column(kept.column).cast(kept.type) for kept in columns.keep]
    asked = [prompt, messages, _values(columns.values, values, len(batch))]
    return [_ids(rows, columns.id), _images(rows, columns.image), *asked, *kept]


def _as_json(messages: pa.Array) -> pa.Array:
    """JSON text as it is, structs as JSON text; null stays null."""
    if is_text(messages.type) or types.is_null(messages.type):
        return messages.cast(pa.string())
    rows = messages.to_pylist()
    return pa.array([None if row is None else json.dumps(row, default=str) for row in rows], pa.string())


def _values(names: Sequence[str], columns: Sequence[pa.Array], num_rows: int) -> pa.Array:
    """One map a row from these names to the values of these columns."""
    rows = zip(*(column.to_pylist() for column in columns), strict=True) if columns else [()] * num_rows
    return pa.array([list(zip(names, row, strict=True)) for row in rows], REQUEST_SCHEMA.field("values").type)


def _images(rows: _Rows, name: str | None) -> pa.Array:
    """The images of each row, in order; a row whose list is null has one image that is null, as with single images."""
    if name is None:
        return pa.array([[]] * len(rows.batch), _IMAGES)
    column, folder = rows.batch.column(name), rows.url.rsplit("/", 1)[0]
    if not is_list(column.type):
        return _one_image_a_row(*_data_and_uri(column, folder))
    column = column.cast(pa.list_(column.type.value_type))
    column = pc.if_else(column.is_valid(), column, pa.array([[None]], column.type)[0])
    images = _image_structs(*_data_and_uri(column.flatten(), folder))
    offsets = np.cumsum([0, *column.value_lengths().to_pylist()], dtype=np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), images, type=_IMAGES)


def _ids(rows: _Rows, name: str | None) -> pa.Array:
    """The id column as strings; a row without one is called after its file and its position there."""
    positions = pa.array(np.arange(rows.first, rows.first + len(rows.batch))).cast(pa.string())
    made = pc.binary_join_element_wise(rows.name, positions, ":")
    return made if name is None else pc.coalesce(rows.batch.column(name).cast(pa.string()), made)


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
