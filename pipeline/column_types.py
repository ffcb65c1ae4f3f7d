"""Column types: what an Arrow column of some type can hold for us, an image, a text or a conversation."""

from typing import Literal

import pyarrow as pa
from pyarrow import types

ImageKind = Literal["bytes", "uri", "struct", "list of bytes", "list of uri", "list of struct"]
_LISTS: dict[ImageKind, ImageKind] = {"bytes": "list of bytes", "uri": "list of uri", "struct": "list of struct"}


def image_kind(type: pa.DataType) -> ImageKind | None:
    """How a column of this type holds an image; None where it cannot."""
    if types.is_binary(type) or types.is_large_binary(type):
        return "bytes"
    if is_text(type):
        return "uri"
    if types.is_struct(type) and {"bytes", "path"} & {field.name for field in type}:
        return "struct"
    kind = image_kind(type.value_type) if is_list(type) else None
    return _LISTS.get(kind) if kind else None


def is_list(type: pa.DataType) -> bool:
    """Whether a column of this type holds lists, however Arrow lays them out."""
    return bool(types.is_list(type) or types.is_large_list(type) or types.is_fixed_size_list(type))


def is_messages(type: pa.DataType) -> bool:
    """Whether a column of this type can hold conversations: JSON text, or lists of {role, content} structs."""
    if not is_list(type):
        return is_text(type)
    turn = type.value_type
    return bool(types.is_struct(turn)) and {"role", "content"} <= {field.name for field in turn} and _is_plain(turn)


def is_text(type: pa.DataType) -> bool:
    """Whether a column of this type holds strings, dictionary-encoded ones too."""
    value = type.value_type if types.is_dictionary(type) else type
    return bool(types.is_string(value) or types.is_large_string(value))


def _is_plain(type: pa.DataType) -> bool:
    """Whether JSON can say it: no bytes, at any depth."""
    if is_list(type):
        return _is_plain(type.value_type)
    if types.is_struct(type):
        return all(_is_plain(field.type) for field in type)
    return is_text(type) or types.is_primitive(type) or types.is_null(type)
