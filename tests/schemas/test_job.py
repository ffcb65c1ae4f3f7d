"""What the settings take, and what they say when they refuse."""

import math
import os

import pytest
from pydantic import ValidationError

from jobs.ocr import OcrSettings
from schemas.job import PLACEMENT, JobSettings, NamedPrompt, columns_in, fill, parse_prompts


def settings(**changes: object) -> JobSettings:
    return JobSettings.model_validate({"input": ("a.parquet",), "output": "out", **changes})


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        settings().seed = 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param({"temperature": -1}, "greater than or equal to 0", id="temperature"),
        pytest.param({"top_p": 0}, "greater than 0", id="top_p"),
        pytest.param({"min_new_tokens": 300}, r"at most max_new_tokens \(256\), got 300", id="min over max"),
        pytest.param({"prompt": ("a=x", "a=y")}, "got a more than once", id="twice the same name"),
        pytest.param({"prompt": ("a=  ",)}, "must not be empty", id="blank prompt"),
        pytest.param({"prompt": ("x",), "prompt_column": "q"}, "exclude each other", id="prompt and column"),
        pytest.param({"prompt": ("x",), "messages_column": "m"}, "prompt and messages_column exclude", id="messages"),
        pytest.param({"prompt": ("a {",)}, r"must name a column or be doubled, got '\{' in 'a \{'", id="a lone brace"),
        pytest.param({"prompt": ("a } b",)}, r"must name a column or be doubled, got '\}'", id="a closing brace"),
        pytest.param({"prompt": ("{}",)}, r"must name a column or be doubled, got '\{\}'", id="no name"),
        pytest.param({"temprature": 1}, "Extra inputs are not permitted", id="unknown key"),
        pytest.param({"input": ()}, "at least 1 item", id="no input"),
        pytest.param({"input": ("a", "")}, "--input must not be empty, got ''", id="an empty input"),
        pytest.param({"output": "a\0b"}, "--output must not hold a null character", id="a null character"),
        pytest.param({"output": " "}, "--output must not be empty, got ' '", id="a blank output"),
        pytest.param({"allow_root": ("",)}, "--allow-root must not be empty", id="an empty root"),
        pytest.param({"input": ("http://me:x@h/a",)}, r"--input http://\*\*\*@h/a must not hold a user", id="password"),
        pytest.param({"output": "s3://me:x@b/a"}, r"--output s3://\*\*\*@b/a must not hold a user", id="output"),
        pytest.param({"adapter": "https://t@h/a"}, r"--adapter https://\*\*\*@h/a must not hold a user", id="adapter"),
        pytest.param({"model": "https://h/a?sig=x"}, r"--model https://h/a\?sig=\*\*\* must not", id="signed"),
        pytest.param({"regex": "a", "choices": "a,b"}, "--regex and --choices exclude each other", id="two forms"),
        pytest.param({"regex": "a", "stop": ("x",)}, "--stop must be left out where answers have a form", id="stop"),
        pytest.param({"json_schema": "no/such.json"}, "no/such.json: the file cannot be read", id="no schema"),
        pytest.param({"num_answers": 2}, "--num-answers 2 needs a --temperature above 0", id="equal answers"),
        pytest.param({"reuse_answers": True, "temperature": 1}, "--reuse-answers needs --temperature 0", id="reuse"),
        pytest.param({"regex": "a", "bad_words": ("b",)}, "--bad-words must be left out", id="bad words and a form"),
        pytest.param({"regex": "a", "answer_prefix": "b"}, "--answer-prefix must be left out", id="prefix and a form"),
        pytest.param({"image_tokens": 0}, "greater than 0", id="no image tokens"),
        pytest.param({"image_tokens": 0.4, "strips": "auto"}, "left out with --strips auto", id="fewer, strips"),
        pytest.param({"image_tokens": 0.4, "engine": "transformers"}, "left out with --engine", id="fewer, other"),
        pytest.param({"temperature": math.inf}, "temperature\\n  Input should be a finite number", id="infinite heat"),
        pytest.param({"row_seconds": math.inf}, "row_seconds\\n  Input should be a finite number", id="endless row"),
        pytest.param({"prompt": ("\udcff",)}, "--prompt must be text that can be written", id="a prompt of bytes"),
        pytest.param({"system": "\udcff"}, "--system must be text that can be written", id="a system of bytes"),
        pytest.param({"revision": "\udcff"}, "--revision must be text that can be written", id="a commit of bytes"),
        pytest.param(
            {"json_schema": "\udcff"}, r"--json-schema \\udcff: the file cannot be read", id="a file of bytes"
        ),
        pytest.param({"json_schema": ""}, "--json-schema must not be empty, got ''", id="an empty schema"),
        pytest.param({"output": ""}, "--output must not be empty, got ''", id="an empty output"),
        pytest.param({"reference_column": ""}, "--reference-column must not be empty, got ''", id="an empty column"),
        pytest.param({"revision": ""}, "--revision must not be empty, got ''", id="an empty revision"),
        pytest.param({"allow_hosts": ("",)}, "--allow-hosts must not be empty, got ''", id="an empty host"),
        pytest.param({"model": "a/" + "x" * 300}, "--model must be a folder or a hub id, of names of at", id="long"),
        pytest.param({"bad_words": ("",)}, "--bad-words must not be empty", id="an empty word"),
        pytest.param({"choices": ("a", "")}, "--choices must not be empty", id="an empty choice"),
        pytest.param({"regex": ""}, "--regex must not be empty", id="an empty expression"),
        pytest.param({"answer_prefix": "\udcff"}, "--answer-prefix must be text that can be written", id="no text"),
        pytest.param({"logprobs": 1, "strips": "auto"}, "--strips must be off with --logprobs", id="strips, logprobs"),
        pytest.param(
            {"json_schema_column": "s", "strips": "auto"}, "--strips must be off with a form", id="strips and a form"
        ),
    ],
)
def test_a_bad_setting_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        settings(**changes)


@pytest.mark.parametrize(
    ("texts", "prompts"),
    [
        pytest.param(("What?",), (("prompt", "What?"),), id="one"),
        pytest.param(("a", "b"), (("prompt1", "a"), ("prompt2", "b")), id="several"),
        pytest.param(("short=Say it in a word.",), (("short", "Say it in a word."),), id="named"),
        pytest.param(("What is 2 + 2 = 4?",), (("prompt", "What is 2 + 2 = 4?"),), id="an equals sign inside"),
        pytest.param(("lines=one\ntwo",), (("lines", "one\ntwo"),), id="over lines"),
    ],
)
def test_prompts_are_named(texts: tuple[str, ...], prompts: tuple[tuple[str, str], ...]) -> None:
    assert parse_prompts(texts) == tuple(NamedPrompt(id=id, text=text) for id, text in prompts)


def test_placement_names_real_settings() -> None:
    assert set(JobSettings.model_fields) >= PLACEMENT


@pytest.mark.parametrize(
    ("text", "columns", "filled"),
    [
        pytest.param("What?", (), "What?", id="none"),
        pytest.param(
            "Translate {caption} to {to language}.", ("caption", "to language"), "Translate {x}} to fr.", id="two"
        ),
        pytest.param("{caption} {caption}", ("caption",), "{x}} {x}}", id="twice"),
        pytest.param("{{caption}} }} {{", (), "{caption} } {", id="doubled braces"),
        pytest.param("{{{to language}}}", ("to language",), "{fr}", id="a value in braces"),
        pytest.param("{a.b}{c!r}{d:>9}", ("a.b", "c!r", "d:>9"), "123", id="a name and nothing else"),
    ],
)
def test_a_prompt_is_filled_from_the_columns_it_names(text: str, columns: tuple[str, ...], filled: str) -> None:
    values = {"caption": "{x}}", "to language": "fr", "a.b": "1", "c!r": "2", "d:>9": "3"}
    assert columns_in(text) == columns
    assert fill(text, values) == filled


def test_the_settings_of_an_ocr_job_are_those_of_any_job_with_other_defaults() -> None:
    ocr = OcrSettings(input=("a",), output="o")
    assert (ocr.max_new_tokens, ocr.cut_repetition, ocr.strips) == (4096, True, "off")
    assert JobSettings.model_validate(ocr.model_dump(mode="json")).model_dump() == ocr.model_dump()


@pytest.mark.parametrize(
    ("field", "value"), [("strips", "always"), ("pdf_dpi", 5), ("pdf_dpi", 2000), ("retry_penalty", 0.9)]
)
def test_a_bad_value_for_reading_is_refused(field: str, value: object) -> None:
    with pytest.raises(ValidationError, match=field):
        JobSettings.model_validate({"input": ("a",), "output": "o", field: value})


def test_a_path_that_is_not_utf_8_is_its_uri() -> None:
    found = settings(input=(os.fsdecode(b"/in/caf\xe9/*.png"), "/in/é"), output=os.fsdecode(b"/\xff"))
    assert found.input == ("file:///in/caf%E9/%2A.png", "/in/é")
    assert found.output == "file:///%FF"
    assert JobSettings.model_validate_json(found.model_dump_json()) == found


def test_the_settings_hold_the_schema_itself_wherever_it_came_from(tmp_path) -> None:
    path = tmp_path / "receipt.json"
    path.write_text('{ "type":\n "object" }', encoding="utf-8")
    for given in (str(path), '{"type": "object"}', {"type": "object"}):
        found = settings(json_schema=given)
        assert found.json_schema == '{"type": "object"}'
        assert JobSettings.model_validate(found.model_dump()) == found


@pytest.mark.parametrize(
    ("given", "choices"),
    [
        pytest.param("a,b c,d", ("a", "b c", "d"), id="with commas"),
        pytest.param(("a,b",), ("a", "b"), id="one flag"),
        pytest.param(("a,b", "c"), ("a,b", "c"), id="several flags"),
        pytest.param(["a", "b"], ("a", "b"), id="a list"),
    ],
)
def test_choices_are_one_text_with_commas_or_several(given: object, choices: tuple[str, ...]) -> None:
    assert settings(choices=given).choices == choices


@pytest.mark.parametrize("name", ["image_column", "id_column", "prompt_column", "messages_column"])
def test_an_empty_name_says_that_the_input_has_no_such_column(name: str) -> None:
    assert getattr(settings(**{name: ""}), name) == ""
