"""Forms: the grammar that an answer's form is for llguidance, and what is wrong with one, found before anything starts.

A form that the library would follow only in part is refused: a keyword that it does not know is one it would ignore.
"""

import json
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from schemas.errors import Refused, RowError
from schemas.form import Form
from schemas.job import JobSettings

if TYPE_CHECKING:
    from llguidance import LLParserLimits

# One blank, or a new line with its indent: white space without end would fill the whole room of an answer.
_BLANK = r"( |\n {0,32})?"
_OPTIONS = "x-guidance"  # what llguidance calls settings of its own inside of a schema

_ANNOTATIONS = frozenset(
    ("$schema", "$id", "id", "$anchor", "$comment", "title", "description", "default", "examples", "deprecated")
    + ("readOnly", "writeOnly")
)
_CHECKED = frozenset(
    ("type", "enum", "const", "$ref", "minLength", "maxLength", "pattern", "format", "minimum", "maximum")
    + ("exclusiveMinimum", "exclusiveMaximum", "multipleOf", "minItems", "maxItems", "required", "minProperties")
    + ("maxProperties",)
)
_ONE = frozenset(("items", "additionalItems", "additionalProperties"))
_SEVERAL = frozenset(("anyOf", "oneOf", "allOf", "prefixItems"))
_NAMED = frozenset(("properties", "patternProperties", "$defs", "definitions"))
_KNOWN = _ANNOTATIONS | _CHECKED | _ONE | _SEVERAL | _NAMED
_DEEPEST = 64  # objects and lists within each other
_FUEL = 200_000  # of llguidance's million for an expression: some 0.5 s of a core, which all rows of a step wait for


def grammar_of(form: Form, *, leading_space: bool = False) -> str:
    """Return a form as llguidance reads it; with `leading_space` a text may have one blank before it."""
    from llguidance import LLMatcher  # here, as most jobs ask for no form

    start = 'start: " "? form' if leading_space else "start: form"
    return LLMatcher.grammar_from_lark(f"{start}\nform: {_RULES[form.kind](form.text)}")


def limits_of_forms() -> "LLParserLimits":
    """Return what following a form may cost."""
    from llguidance import LLParserLimits

    return LLParserLimits(initial_lexer_fuel=_FUEL)


def check_form(form: Form, source: str) -> None:
    """Raise Refused where no answer can be held to a form, with its `source` and what is wrong in it."""
    from llguidance import LLMatcher

    if form.kind == "json_schema":
        _check_keywords(form.text, source)
    if form.kind == "regex" and (len(form.text) - len(form.text.rstrip("\\"))) % 2:
        raise Refused(f"{source} must be a regular expression, {form.text!r} ends within an escape")
    failed, said = LLMatcher.validate_grammar_with_warnings(grammar_of(form))
    if failed or said:
        raise Refused(f"{source} must be a form that answers can be held to: {_one_line(said)}")
    if wrong := _what_stops(form):
        raise Refused(f"{source} must be a form that answers can be held to: {wrong}")


def _what_stops(form: Form) -> str | None:
    """Return why no answer of a form can be begun, byte by byte, however sound its grammar is; None where one can."""
    from llguidance import LLMatcher, LLTokenizer

    tokenizer = LLTokenizer("byte")
    matcher = LLMatcher(tokenizer, grammar_of(form), log_level=0, limits=limits_of_forms())
    for _ in range(2):  # an expression is worked out with the first byte that is in it
        if matcher.is_error() or matcher.is_stopped():
            break
        mask = int.from_bytes(matcher.compute_bitmask(), "little")
        matcher.consume_token((mask & -mask).bit_length() - 1 if mask else tokenizer.eos_token)
    if not matcher.is_error():
        return None
    why = str(matcher.get_error()).partition("\n")[0]
    return "it holds itself without end" if why == "NoExtensionBias" else why


def check_job_form(settings: JobSettings) -> None:
    """Raise Refused where no answer can be held to the form that a job asks for."""
    if settings.answer_form is not None:
        check_form(settings.answer_form, f"--{settings.answer_form.kind.replace('_', '-')}")


def row_form(values: Mapping[str, str | None], column: str | None) -> Form | None:
    """Return the form that a row brings in a column, None where it has none; raise RowError where it is no good."""
    schema = None if column is None else values[column]
    if not schema:
        return None
    form = Form(kind="json_schema", text=schema)
    wrong = _what_is_wrong(form)
    if wrong is not None:
        raise RowError("prompt", "FormRefused", wrong)
    return form


@lru_cache(maxsize=256)
def _what_is_wrong(form: Form) -> str | None:
    try:
        check_form(form, "the row's JSON schema")
    except Refused as error:
        return str(error)
    return None


def _read_schema(text: str, source: str) -> Any:  # noqa: ANN401  a schema is any object, or true
    """Return what a schema's JSON says; raise Refused where it is none."""
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Refused(f"{source} must be a JSON schema, it is no JSON: {error}") from error
    depth, deepest = 0, 0
    for letter in re.sub(r'"(?:[^"\\]|\\.)*"', "", text):
        depth += (letter in "[{") - (letter in "]}")
        deepest = max(depth, deepest)
    if deepest > _DEEPEST:
        raise Refused(f"{source} must be at most {_DEEPEST} levels deep, it is {deepest}")
    return schema


def _check_keywords(text: str, source: str) -> None:
    schema = _read_schema(text, source)
    if not isinstance(schema, dict | bool):
        raise Refused(f"{source} must be a JSON schema, an object, got {text[:40]}")
    for where, part in _schemas(schema):
        unknown = [keyword for keyword in part if keyword not in _KNOWN]
        if unknown:
            raise Refused(f"{source} must have no keyword that answers cannot be held to, {where} has {unknown[0]!r}")


def _schemas(schema: object) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield a schema and those in it, each with its place, as `/properties/total`."""
    waiting: list[tuple[str, object]] = [("", schema)]
    while waiting:
        where, part = waiting.pop()
        if not isinstance(part, dict):
            continue
        yield where or "/", part
        for keyword, value in part.items():
            below = f"{where}/{keyword}"
            if keyword in _NAMED and isinstance(value, dict):
                waiting += [(f"{below}/{name}", one) for name, one in value.items()]
            elif keyword in _ONE | _SEVERAL and isinstance(value, list):
                waiting += [(f"{below}/{number}", one) for number, one in enumerate(value)]
            elif keyword in _ONE:
                waiting.append((below, value))


def _json_rule(text: str) -> str:
    schema = json.loads(text)
    if isinstance(schema, bool):
        schema = {} if schema else {"enum": []}
    if not any(_is_composed(one) for _, one in _schemas(schema)):
        schema = _closed(schema)
    return "%json " + json.dumps({_OPTIONS: {"whitespace_pattern": _BLANK}, **schema})


def _is_composed(schema: dict[str, Any]) -> bool:
    """Return whether an object of this schema has properties that others of its parts name."""
    return "allOf" in schema or ("properties" in schema and not schema.keys().isdisjoint({"anyOf", "oneOf", "$ref"}))


def _closed(schema: Any) -> Any:  # noqa: ANN401  any part of a schema
    """Return a schema whose objects have the properties that it names and no others, where it does not say."""
    if isinstance(schema, list):
        return [_closed(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    inner: dict[str, Any] = {}
    for keyword, value in schema.items():
        if keyword in _NAMED and isinstance(value, dict):
            inner[keyword] = {name: _closed(one) for name, one in value.items()}
        else:
            inner[keyword] = _closed(value) if keyword in _ONE | _SEVERAL else value
    if "properties" in inner and not inner.keys() & {"additionalProperties", "patternProperties"}:
        inner["additionalProperties"] = False
    return inner


def _regex_rule(text: str) -> str:
    from llguidance import regex_to_lark

    return f"/{regex_to_lark(text)}/" if text else '""'


def _choices_rule(text: str) -> str:
    return f"/{_any_of(json.loads(text))}/"  # as one expression: of rules the library takes 2,000


def _bad_words_rule(text: str) -> str:
    return f"FORM\nFORM: /(?s:.*)/ & ~/(?s:.*){_any_of(json.loads(text))}(?s:.*)/"


def _any_of(texts: list[str]) -> str:
    """Return the expression that matches these texts and no others."""
    escaped = ("".join(f"\\x{{{ord(letter):x}}}" for letter in text) for text in texts)
    return f"({'|'.join(escaped)})"


_RULES = {"json_schema": _json_rule, "regex": _regex_rule, "choices": _choices_rule, "bad_words": _bad_words_rule}


def _one_line(said: list[str]) -> str:
    """Return what the library says without its excerpt of the grammar."""
    text = re.sub(r"^at \d+\(\d+\): (failed to compile JSON schema: )?", "", "; ".join(said))
    lines = [line.strip() for line in text.splitlines()]
    return " ".join(line for line in lines if line and not re.match(r"(\d+ \||\|)|[\^ ]*$", line))
