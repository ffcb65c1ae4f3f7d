"""Column types: what an Arrow column of some type can hold for us, and the plain layout in which we read it."""

import re
import uuid
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import types

ImageKind = Literal["bytes", "uri", "struct", "list of bytes", "list of uri", "list of struct"]
_LISTS: dict[ImageKind, ImageKind] = {"bytes": "list of bytes", "uri": "list of uri", "struct": "list of struct"}
_IMAGE_FIELDS: dict[str, ImageKind] = {"bytes": "bytes", "path": "uri"}  # of a struct, and what each holds

# Base64 of a picture's first bytes (JPEG, PNG, WebP, GIF, TIFF), or so much of that alphabet that it is no path.
_MAGIC = "/9j/|iVBORw0KGgo|UklGR|R0lGOD|SUkqA|TU0AK"
_LETTERS = r"[A-Za-z0-9+/_\r\n-]"
BARE_BASE64 = rf"^(?:(?:{_MAGIC}){_LETTERS}{{40,}}|[A-Za-z0-9+]{_LETTERS}{{999,}})={{0,2}}\s*$"
# The same for Python, whose engine would go back letter by letter where a text is none after all.
_BARE_BASE64 = re.compile(BARE_BASE64.replace(",}", ",}+"))


def image_kind(type: pa.DataType) -> ImageKind | None:
    """Return how a column of this type holds an image; None where it cannot."""
    if is_bytes(type):
        return "bytes"
    if is_text(type):
        return "uri"
    if types.is_struct(type):
        return "struct" if _is_image_struct(type) else None
    kind = image_kind(type.value_type) if is_list(type) else None
    return _LISTS.get(kind) if kind else None


def is_bytes(type: pa.DataType) -> bool:
    """Return whether a column of this type holds bytes, as numbers of 8 bits too."""
    if is_list(type):
        return bool(types.is_uint8(_value(type.value_type)))
    return is_binary(type) or bool(types.is_fixed_size_binary(_value(type)))


def is_binary(type: pa.DataType) -> bool:
    """Return whether a column of this type holds bytes of any length."""
    value = _value(type)
    return bool(types.is_binary(value) or types.is_large_binary(value) or types.is_binary_view(value))


def is_list(type: pa.DataType) -> bool:
    """Return whether a column of this type holds lists, however Arrow lays them out."""
    return bool(
        types.is_list(type) or types.is_large_list(type) or types.is_fixed_size_list(type) or is_list_view(type)
    )


def is_list_view(type: pa.DataType) -> bool:
    """Return whether a column of this type holds lists as views of their values."""
    return bool(types.is_list_view(type) or types.is_large_list_view(type))


def is_text(type: pa.DataType) -> bool:
    """Return whether a column of this type holds strings, dictionary-encoded ones too."""
    value = _value(type)
    return bool(types.is_string(value) or types.is_large_string(value) or types.is_string_view(value))


def is_prompt(type: pa.DataType) -> bool:
    """Return whether a column of this type can hold questions: strings, or bytes that should be UTF-8."""
    return is_text(type) or is_binary(type)


def is_id(type: pa.DataType) -> bool:
    """Return whether a column of this type names rows: text, or what has one plain spelling. Floats have not."""
    value = _value(type)
    spelled = types.is_integer(value) or types.is_decimal(value) or types.is_date(value) or types.is_timestamp(value)
    return is_prompt(type) or bool(spelled) or _is_uuid(type) or bool(types.is_null(type))


def is_value(type: pa.DataType) -> bool:
    """Return whether a prompt can name a column of this type: its values can be written out."""
    value = _value(type)
    spelled = types.is_floating(value) or types.is_boolean(value) or types.is_time(value) or types.is_duration(value)
    return (is_id(type) or bool(spelled)) and not is_binary(type)


def is_messages(type: pa.DataType) -> bool:
    """Return whether a column of this type can hold conversations: JSON text, or lists of {role, content} or {from,
    value}."""
    if isinstance(type, pa.JsonType):
        return True
    if not is_list(type):
        return is_prompt(type)
    message = type.value_type
    if types.is_map(message):
        return is_text(message.key_type) and _is_plain(message.item_type)
    if not types.is_struct(message):
        return False
    names = {field.name for field in message}
    return ({"role", "content"} <= names or {"from", "value"} <= names) and _is_plain(message)


def is_llava(type: pa.DataType) -> bool:
    """Return whether conversations of this type are structs of {from, value}, as LLaVA's own training data is."""
    message = type.value_type if is_list(type) else None
    return bool(message is not None and types.is_struct(message) and "role" not in {field.name for field in message})


def plain_type(type: pa.DataType) -> pa.DataType:
    """Return the type of the same values in one layout: no views, dictionaries, runs or extensions, 64-bit offsets
    throughout.

    Everything that Arrow can do it can do with these, and none of them overflows at 2 GB.
    """
    if isinstance(type, pa.BaseExtensionType):
        return plain_type(type.storage_type)
    value = _value(type)
    if is_text(value):
        return pa.large_string()
    if is_binary(value):
        return pa.large_binary()
    return _plain_nested(value) if types.is_nested(value) else value


def _plain_nested(type: pa.DataType) -> pa.DataType:
    if types.is_fixed_size_list(type):
        return pa.list_(plain_type(type.value_type), type.list_size)
    if is_list(type):
        return pa.large_list(plain_type(type.value_type))
    if types.is_map(type):
        return pa.map_(plain_type(type.key_type), plain_type(type.item_type))
    if types.is_struct(type):
        return pa.struct([pa.field(field.name, plain_type(field.type)) for field in type])
    return type  # unions, which Parquet has none of


def plain(array: pa.Array) -> pa.Array:
    """Return the values in their plain layout."""
    there = plain_type(array.type)
    if not is_list_view(array.type):
        return array.cast(there)
    # Arrow 26 casts large list views that end in a null to lists without their last offset
    sizes = pc.fill_null(array.value_lengths(), 0).to_numpy(zero_copy_only=False)
    offsets = pa.array(np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)]), pa.int64())
    values = array.flatten().cast(there.value_type)
    return pa.LargeListArray.from_arrays(offsets, values, type=there, mask=array.is_null())


def as_text(array: pa.Array) -> pa.Array:
    """Return the values of a column of texts, ids or numbers as strings; raises ArrowInvalid where bytes are not
    UTF-8."""
    if _is_uuid(array.type):
        spelled = [value and str(uuid.UUID(bytes=value)) for value in array.cast(array.type.storage_type).to_pylist()]
        return pa.array(spelled, pa.string())
    return plain(array).cast(pa.string())


def as_bytes(array: pa.Array) -> pa.Array:
    """Return the values of a column of bytes, or of lists of their numbers, as large_binary."""
    if not is_list(array.type):
        return array.cast(pa.large_binary()) if types.is_null(array.type) else plain(array).cast(pa.large_binary())
    lists = plain(array)
    values = lists.flatten()
    if values.null_count:
        raise pa.ArrowInvalid("a null among an image's bytes")
    sizes = pc.fill_null(lists.value_lengths(), 0).to_numpy(zero_copy_only=False)
    offsets = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)]).astype(np.int64)
    data = np.ascontiguousarray(values.to_numpy(zero_copy_only=False).astype(np.uint8, copy=False))
    buffers = [lists.is_valid().buffers()[1], pa.py_buffer(offsets), pa.py_buffer(data)]
    return pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(lists), buffers)


def looks_like_base64(text: str) -> bool:
    """Return whether a text instead of a path is an image written out in base64, without the data: before it."""
    return text.isascii() and _BARE_BASE64.match(text) is not None


def _value(type: pa.DataType) -> pa.DataType:
    """Return what a column of this type holds, whether each value is written out or pointed at."""
    is_encoded = types.is_dictionary(type) or types.is_run_end_encoded(type)
    return type.value_type if is_encoded else type


def _is_uuid(type: pa.DataType) -> bool:
    return isinstance(type, pa.UuidType)


def _is_image_struct(type: pa.StructType) -> bool:
    found = [field for field in type if field.name in _IMAGE_FIELDS]
    fits = (types.is_null(field.type) or image_kind(field.type) == _IMAGE_FIELDS[field.name] for field in found)
    return bool(found) and all(fits) and not all(types.is_null(field.type) for field in found)


def _is_plain(type: pa.DataType) -> bool:
    """Return whether JSON can say it: no bytes, at any depth."""
    if is_list(type):
        return _is_plain(type.value_type)
    if types.is_struct(type):
        return all(_is_plain(field.type) for field in type)
    return is_text(type) or types.is_primitive(type) or types.is_null(type)
