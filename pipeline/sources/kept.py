"""Kept columns: input columns of any type, carried to the answers and written there with the type that they had.

On the way they have a plain layout, with which Arrow can do everything; their fields' metadata says what they were.
"""

from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import types

from pipeline.sources.arrow_types import is_list, is_list_view, plain, plain_type
from schemas.answer import ANSWER_SCHEMA

_WAS = b"llava_batch_type"  # the metadata of a column that travels: its own type, as a schema


def can_be_kept(type: pa.DataType) -> bool:
    """Return whether a column of this type can be given its type back."""
    if is_list_view(type):
        return not _has_views(type.value_type)
    return not _has_views(type)


def travel_field(name: str, type: pa.DataType) -> pa.Field:
    """Return the field under which a column of this type travels."""
    there, type = plain_type(type), _nullable(type)
    if there == type:
        return pa.field(name, type)
    own = pa.schema([pa.field("", type)]).serialize().to_pybytes()
    return pa.field(name, there, metadata={_WAS: own})


def written_schema(keep: Iterable[tuple[str, pa.DataType]]) -> pa.Schema:
    """Return the columns of the answers where columns of these names and types are kept."""
    return pa.schema([*ANSWER_SCHEMA, *(pa.field(name, _nullable(type)) for name, type in keep)])


def to_travel(table: pa.Table) -> pa.Table:
    """Return a table of answers with its kept columns in the layout in which they travel."""
    own = set(ANSWER_SCHEMA.names)
    schema = pa.schema([f if f.name in own or _was(f) else travel_field(f.name, f.type) for f in table.schema])
    columns = (
        column if was.type == field.type else pa.chunked_array([plain(chunk) for chunk in column.chunks], field.type)
        for column, was, field in zip(table.columns, table.schema, schema, strict=True)
    )
    return pa.table(list(columns), schema=schema)


def restore(table: pa.Table) -> pa.Table:
    """Return the table with every column that travels in its own type again, in as many chunks as that type needs."""
    for number, field in enumerate(table.schema):
        own = _was(field)
        if own is not None:
            chunks = [part for chunk in table.column(number).chunks for part in _restored(chunk, own)]
            table = table.set_column(number, pa.field(field.name, own), pa.chunked_array(chunks, own))
    return table


def _was(field: pa.Field) -> pa.DataType | None:
    own = (field.metadata or {}).get(_WAS)
    return None if own is None else pa.ipc.read_schema(pa.py_buffer(own)).field(0).type


def _restored(array: pa.Array, own: pa.DataType) -> Iterator[pa.Array]:
    """Yield the array in its own type; halved where it is more than the 2 GB that an array of that type can hold."""
    try:
        yield _as_views(array, own) if is_list_view(own) else array.cast(own)
    except pa.ArrowInvalid:
        if len(array) < 2:
            raise
        for half in np.array_split(np.arange(len(array)), 2):
            yield from _restored(array.take(pa.array(half)), own)  # a slice would keep its offsets beyond 2 GB


def _as_views(lists: pa.LargeListArray, own: pa.DataType) -> pa.Array:
    """Return lists as views of lists, which Arrow cannot cast."""
    kind = pa.LargeListViewArray if types.is_large_list_view(own) else pa.ListViewArray
    width = pa.int64() if types.is_large_list_view(own) else pa.int32()
    values = lists.flatten().cast(own.value_type)
    sizes = pc.fill_null(lists.value_lengths(), 0).cast(width)
    ends = pc.cumulative_sum(sizes) if len(sizes) else sizes
    starts = pc.subtract(ends, sizes)
    return kind.from_arrays(starts, sizes, values, type=own, mask=lists.is_null())


def _nullable(type: pa.DataType) -> pa.DataType:
    """Return the type without `not null` inside: Arrow casts no null struct to one whose fields must be there."""
    if types.is_struct(type):
        return pa.struct([pa.field(field.name, _nullable(field.type), metadata=field.metadata) for field in type])
    if not is_list(type) or is_list_view(type):
        return type
    values = pa.field(type.value_field.name, _nullable(type.value_type))
    if types.is_fixed_size_list(type):
        return pa.list_(values, type.list_size)
    return pa.large_list(values) if types.is_large_list(type) else pa.list_(values)


def _has_views(type: pa.DataType) -> bool:
    if is_list_view(type):
        return True
    if is_list(type):
        return _has_views(type.value_type)
    if types.is_map(type):
        return _has_views(type.key_type) or _has_views(type.item_type)
    return bool(types.is_struct(type)) and any(_has_views(field.type) for field in type)


def beside(table: pa.Table, kept: pa.Table) -> pa.Table:
    """Return the table with the kept columns behind its own."""
    for name in kept.column_names:
        table = table.append_column(kept.schema.field(name), kept.column(name))
    return table
