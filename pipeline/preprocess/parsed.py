"""Parsed answers: the columns that answers have where a job asks for them; texts read into that of a JSON schema.

What has no single type in Arrow (values of several types, objects with names of their own, schemas within themselves)
is kept as its JSON text.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from schemas.answer import LOGPROBS
from schemas.errors import Refused
from schemas.job import JobSettings

ANSWER_ID, LOGPROBS_COLUMN, PARSED = "answer_id", "logprobs", "parsed"  # the columns' names
_DEEPEST = 16  # structs and lists within each other, that a column has
_SCALARS = {"string": pa.string(), "integer": pa.int64(), "number": pa.float64(), "boolean": pa.bool_()}
_OF_VALUES = {str: "string", int: "integer", float: "number", bool: "boolean"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Type that a part of an answer is read into: a scalar, a list of `items`, a struct of `fields`, or JSON text."""

    type: pa.DataType
    items: "Shape | None" = None
    fields: "tuple[tuple[str, Shape], ...]" = ()
    as_json: bool = False

    def read(self, value: Any) -> Any:  # noqa: ANN401  any value of JSON
        """Return a value as Arrow takes it."""
        if value is None:
            return None
        if self.as_json:
            return json.dumps(value, ensure_ascii=False)
        if self.items is not None:
            return [self.items.read(one) for one in value]
        if self.fields:
            return {name: shape.read(value.get(name)) for name, shape in self.fields}
        return float(value) if pa.types.is_floating(self.type) else value


_JSON = Shape(type=pa.string(), as_json=True)


def shape_of(settings: JobSettings) -> Shape | None:
    """Return what the answers of a job are read into, None where they are not; raise Refused where its schema is of no
    object with named properties."""
    if not settings.parse:
        return None
    if settings.json_schema is None or settings.json_schema_column is not None:
        raise Refused("--parse needs one --json-schema for all rows: the answers have one column with one type")
    schema = json.loads(settings.json_schema)
    shape = _shape(schema, schema, 0)
    if not shape.fields:
        raise Refused("--parse needs a --json-schema whose type is an object with named properties and no others")
    return shape


def answer_columns(settings: JobSettings) -> list[tuple[str, pa.DataType]]:
    """Return the columns that a job's answers have because of what it asks, behind all others."""
    shape = shape_of(settings)
    wanted = [
        (ANSWER_ID, pa.int32(), settings.num_answers > 1),
        (LOGPROBS_COLUMN, LOGPROBS, settings.logprobs is not None),
        (PARSED, shape and shape.type, shape is not None),
    ]
    return [(name, type) for name, type, is_there in wanted if is_there]


def parse_texts(texts: Sequence[str | None], shape: Shape) -> pa.Array:
    """Return the texts read; null where there is none, where it was cut, and where Arrow cannot hold a value, as a
    number beyond 64 bits."""
    return pa.concat_arrays([_parse(text, shape) for text in texts] or [pa.nulls(0, shape.type)])


def _parse(text: str | None, shape: Shape) -> pa.Array:
    try:
        return pa.array([None if text is None else shape.read(json.loads(text))], shape.type)
    except (ValueError, TypeError, OverflowError, AttributeError, RecursionError):
        return pa.nulls(1, shape.type)


def _shape(schema: object, root: dict[str, Any], depth: int) -> Shape:
    if not isinstance(schema, dict) or depth > _DEEPEST or "allOf" in schema:
        return _JSON
    if "$ref" in schema:
        return _shape(_resolved(schema["$ref"], root), root, depth + 1) if _is_alone(schema, "$ref") else _JSON
    for keyword in ("anyOf", "oneOf"):
        if keyword in schema:
            return _shape_of_all(schema[keyword], root, depth) if _is_alone(schema, keyword) else _JSON
    if "enum" in schema or "const" in schema:
        return _shape_of_values(schema.get("enum", [schema.get("const")]))
    types = schema.get("type")
    named = [one for one in (types if isinstance(types, list) else [types]) if one != "null"]
    return _shape_of_type(named[0], schema, root, depth) if len(named) == 1 else _JSON


def _shape_of_type(name: object, schema: dict[str, Any], root: dict[str, Any], depth: int) -> Shape:
    if name == "array":
        if not isinstance(schema.get("items"), dict) or "prefixItems" in schema:
            return _JSON
        items = _shape(schema["items"], root, depth + 1)
        return Shape(type=pa.list_(items.type), items=items)
    if name == "object":
        closed = schema.get("additionalProperties", False) is False and not schema.get("patternProperties")
        if not closed or not schema.get("properties"):
            return _JSON
        fields = tuple((key, _shape(one, root, depth + 1)) for key, one in schema["properties"].items())
        return Shape(type=pa.struct([pa.field(key, one.type) for key, one in fields]), fields=fields)
    return Shape(type=_SCALARS[name]) if name in _SCALARS else _JSON


def _shape_of_all(schemas: Sequence[Any], root: dict[str, Any], depth: int) -> Shape:
    """Return the shape that all of them have but for null."""
    shapes = [_shape(one, root, depth) for one in schemas if one != {"type": "null"}]
    return shapes[0] if shapes and all(one == shapes[0] for one in shapes) else _JSON


def _shape_of_values(values: Sequence[Any]) -> Shape:
    names = {_OF_VALUES.get(type(value)) for value in values if value is not None}
    name = names.pop() if len(names) == 1 else None
    return Shape(type=_SCALARS[name]) if name is not None else _JSON


def _is_alone(schema: dict[str, Any], keyword: str) -> bool:
    """Return whether nothing that decides on a value's type stands beside a keyword."""
    return schema.keys() <= {keyword, "title", "description", "default", "examples", "$defs", "definitions", "$comment"}


def _resolved(reference: object, root: dict[str, Any]) -> object:
    """Return the part of a schema that a reference within it names; None where it is none."""
    found: Any = root
    for step in str(reference).removeprefix("#").split("/")[1:]:
        found = found.get(step.replace("~1", "/").replace("~0", "~")) if isinstance(found, dict) else None
    return found if str(reference).startswith("#") else None
