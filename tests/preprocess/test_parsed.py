"""Parsed answers: every schema of an object makes a struct, and what has no single type stays its JSON text."""

import json

import pyarrow as pa
import pytest

from pipeline.preprocess.parsed import parse_texts, shape_of
from schemas.errors import Refused
from schemas.job import JobSettings


def settings(schema: object, **others: object) -> JobSettings:
    return JobSettings.model_validate({"input": ("a",), "output": "o", "json_schema": schema, "parse": True, **others})


def of(**properties: object) -> dict[str, object]:
    return {"type": "object", "properties": properties, "additionalProperties": False}


@pytest.mark.parametrize(
    ("part", "type", "value"),
    [
        pytest.param({"type": "string"}, pa.string(), "a", id="string"),
        pytest.param({"type": "integer"}, pa.int64(), 7, id="integer"),
        pytest.param({"type": "number"}, pa.float64(), 7, id="number"),
        pytest.param({"type": ["boolean", "null"]}, pa.bool_(), None, id="or null"),
        pytest.param({"anyOf": [{"type": "integer"}, {"type": "null"}]}, pa.int64(), 7, id="any of one and null"),
        pytest.param({"enum": ["a", "b", None]}, pa.string(), "a", id="enum"),
        pytest.param({"const": 3}, pa.int64(), 3, id="const"),
        pytest.param({"type": "array", "items": {"type": "string"}}, pa.list_(pa.string()), ["a"], id="list"),
        pytest.param(of(b={"type": "integer"}), pa.struct([("b", pa.int64())]), {"b": 1}, id="struct"),
        pytest.param({"$ref": "#/$defs/n"}, pa.int64(), 5, id="reference"),
    ],
)
def test_a_part_of_one_type_is_read_into_that_type(part: object, type: pa.DataType, value: object) -> None:
    shape = shape_of(settings({**of(a=part), "$defs": {"n": {"type": "integer"}}}))
    assert shape is not None
    assert shape.type == pa.struct([("a", type)])
    assert parse_texts([json.dumps({"a": value})], shape).to_pylist() == [{"a": value}]


@pytest.mark.parametrize(
    ("part", "value"),
    [
        pytest.param({}, [1, "é"], id="anything"),
        pytest.param({"type": ["string", "integer"]}, 3, id="two types"),
        pytest.param({"enum": ["a", 1]}, "a", id="enum of two types"),
        pytest.param({"type": "object"}, {"x": 1}, id="any object"),
        pytest.param({**of(b={"type": "integer"}), "additionalProperties": True}, {"b": 1, "c": 2}, id="open object"),
        pytest.param({"type": "array", "prefixItems": [{"type": "string"}]}, ["a"], id="tuple"),
        pytest.param({"$ref": "#"}, {"a": {"a": None}}, id="within itself"),
        pytest.param({"allOf": [{"type": "string"}]}, "a", id="all of"),
    ],
)
def test_a_part_without_one_type_stays_its_json(part: object, value: object) -> None:
    shape = shape_of(settings(of(a=part)))
    assert shape is not None
    (found,) = parse_texts([json.dumps({"a": value})], shape).to_pylist()
    while isinstance(found["a"], dict):  # a schema within itself is read as deep as a column may be
        found, value = found["a"], value["a"] if isinstance(value, dict) else None
    assert found["a"] is None or json.loads(found["a"]) == value


def test_what_cannot_be_read_is_null_and_costs_no_other_row() -> None:
    shape = shape_of(settings(of(a={"type": "integer"}, b={"type": "string"})))
    assert shape is not None
    texts = [None, '{"a": 1', '{"a": 99999999999999999999}', '{"b": "\\ud800"}', '{"a": 2}']
    assert parse_texts(texts, shape).to_pylist() == [None, None, None, None, {"a": 2, "b": None}]
    assert parse_texts([], shape).type == shape.type


@pytest.mark.parametrize(
    ("schema", "others"),
    [
        pytest.param(None, {}, id="no schema"),
        pytest.param({"type": "string"}, {}, id="no object"),
        pytest.param({"type": "object"}, {}, id="no properties"),
        pytest.param(of(a={}), {"json_schema_column": "form"}, id="a schema a row"),
    ],
)
def test_parsing_needs_one_schema_of_an_object(schema: object, others: dict[str, object]) -> None:
    with pytest.raises(Refused, match="--parse needs"):
        shape_of(settings(schema, **others))
