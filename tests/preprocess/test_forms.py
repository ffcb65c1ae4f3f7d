"""Forms: what no answer can be held to is refused by its keyword, before anything starts."""

import json

import pytest

from pipeline.preprocess.forms import check_form, check_job_form, grammar_of, row_form
from schemas.errors import Refused, RowError
from schemas.form import Form
from schemas.job import JobSettings


def schema(**keywords: object) -> Form:
    return Form(kind="json_schema", text=json.dumps(keywords))


DEEP = {"type": "array"}
for _ in range(70):
    DEEP = {"type": "array", "items": DEEP}


@pytest.mark.parametrize(
    ("form", "said"),
    [
        pytest.param(schema(**{"not": {}}), "/ has 'not'", id="not"),
        pytest.param(schema(type="objekt"), "Invalid type: objekt", id="type"),
        pytest.param(schema(type="string", maxlength=3), "/ has 'maxlength'", id="misspelt"),
        pytest.param(schema(properties={"a": {"items": {"contains": 1}}}), "/properties/a/items has", id="in an array"),
        pytest.param(schema(anyOf=[{"type": "null"}, {"if": {}}]), "/anyOf/1 has 'if'", id="in a list"),
        pytest.param(schema(**{"x-guidance": {"lenient": True}}), "'x-guidance'", id="the library's own"),
        pytest.param(schema(**{"$ref": "#/$defs/x"}), "/$defs/x", id="reference to nothing"),
        pytest.param(schema(type="string", format="colour"), "Unknown format: colour", id="format"),
        pytest.param(schema(type="string", pattern="(a"), "unclosed group", id="pattern"),
        pytest.param(schema(type="integer", minimum=2, maximum=1), "minimum (2)", id="impossible"),
        pytest.param(schema(**DEEP), "64 levels", id="deep"),
        pytest.param(Form(kind="json_schema", text="[1]"), "an object", id="a list"),
        pytest.param(Form(kind="json_schema", text="{"), "no JSON", id="no JSON"),
        pytest.param(Form(kind="regex", text="(?=a)b"), "look-around", id="look-around"),
        pytest.param(Form(kind="regex", text="a\\"), "ends within an escape", id="escape"),
        pytest.param(Form(kind="regex", text="(a{1000}){1000}"), "too many expressions", id="too large"),
        pytest.param(schema(**{"$ref": "#"}), "holds itself without end", id="nothing but itself"),
    ],
)
def test_a_form_that_no_answer_can_be_held_to_is_refused_by_name(form: Form, said: str) -> None:
    with pytest.raises(Refused) as refused:
        check_form(form, "--the-form")
    assert str(refused.value).startswith("--the-form must")
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "form",
    [
        pytest.param(schema(properties={"not": {"type": "string"}, "if": {}}), id="names that are keywords"),
        pytest.param(schema(enum=["not", {"if": 1}]), id="values that are keywords"),
        pytest.param(schema(title="a", description="b", type="string", default="c"), id="annotations"),
        pytest.param(Form(kind="regex", text='a/b\n"[/]'), id="a regex with every mark"),
        pytest.param(Form(kind="choices", text='["a|b", "", "\\n", "/é/"]'), id="choices with marks"),
        pytest.param(Form(kind="choices", text=json.dumps([str(n) for n in range(4_000)])), id="many choices"),
        pytest.param(schema(type="string", maxLength=20_000), id="a long text"),
        pytest.param(schema(properties={"a": {"$ref": "#"}}), id="a tree"),
    ],
)
def test_a_form_that_answers_can_be_held_to_is_taken(form: Form) -> None:
    check_form(form, "--the-form")
    assert grammar_of(form, leading_space=True) != grammar_of(form)


def test_a_job_refuses_its_form_by_its_flag() -> None:
    settings = JobSettings(input=("a",), output="o", json_schema={"uniqueItems": True})
    with pytest.raises(Refused, match=r"--json-schema must .*'uniqueItems'"):
        check_job_form(settings)


def test_a_row_brings_its_own_schema_and_one_that_is_no_good_is_its_own_error() -> None:
    assert row_form({"form": '{"type": "integer"}'}, "form") == schema(type="integer")
    assert row_form({"form": None}, "form") is None
    assert row_form({}, None) is None
    with pytest.raises(RowError) as error:
        row_form({"form": '{"not": {}}'}, "form")
    assert (error.value.failure.stage, error.value.failure.type) == ("prompt", "FormRefused")
