"""Options: what a row asks of its own answer, honoured where a job can, refused by name where it asks another thing."""

import json
from collections.abc import Mapping
from typing import Any

from schemas.errors import RowError
from schemas.job import JobSettings

_LENGTHS = ("max_tokens", "max_completion_tokens")
_OF_SAMPLING = ("top_p", "top_k", "seed")  # which draw nothing at temperature 0
_OTHERS = ("temperature", "stop", "repetition_penalty")
RESPONSE_FORMAT = "response_format"  # and the column in which batch requests have its schema


def longest_answer(options: str | None, settings: JobSettings) -> int:
    """Return how many tokens the answer to a row may have; raise RowError for what only another job could do."""
    asked: Mapping[str, Any] = json.loads(options) if options else {}
    for name, value in asked.items():
        _check(name, value, settings)
    lengths: list[int] = [asked[name] for name in _LENGTHS if name in asked]
    return min([settings.max_new_tokens, *lengths])


def schema_asked(response_format: object) -> str | None:
    """Return the JSON text of the schema that a `response_format` asks for; None where it asks for none that is one."""
    if not isinstance(response_format, Mapping):
        return None
    if response_format.get("type") == "json_object":
        return '{"type": "object"}'
    within = response_format.get("json_schema")
    schema = within.get("schema") if isinstance(within, Mapping) else None
    is_schema = response_format.get("type") == "json_schema" and isinstance(schema, Mapping)
    return json.dumps(schema) if is_schema else None


def _check(name: str, value: object, settings: JobSettings) -> None:
    """Raise RowError where the job does not do what a row asks."""
    if name in _LENGTHS:
        _check_length(name, value, settings.max_new_tokens)
    elif name == RESPONSE_FORMAT:
        _check_form(value, settings)
    elif name == "n":
        _check_same(name, value, settings, "num_answers")
    elif name in ("logprobs", "top_logprobs"):
        _check_logprobs(name, value, settings.logprobs)
    elif name not in (*_OF_SAMPLING, *_OTHERS):
        raise _refused(f"{name} is {value!r}, which is nothing that this pipeline does: leave it out")
    elif name not in _OF_SAMPLING or settings.temperature > 0:
        _check_same(name, value, settings, name)


def _check_form(value: object, settings: JobSettings) -> None:
    schema = schema_asked(value)
    if schema is None:
        wanted = 'text, json_object, or json_schema with {"schema": {...}} in its json_schema'
        raise _refused(f"{RESPONSE_FORMAT} must be of type {wanted}, got {value!r}")
    if settings.json_schema_column == RESPONSE_FORMAT:
        return
    if settings.json_schema is None or json.loads(settings.json_schema) != json.loads(schema):
        flag = f"--json-schema-column {RESPONSE_FORMAT}"
        raise _refused(
            f"{RESPONSE_FORMAT} asks for a form, which the job's answers do not have: {flag} gives each its own"
        )


def _check_logprobs(name: str, value: object, told: int | None) -> None:
    """Raise RowError where a row wants more log-probabilities than the job gives."""
    least = value if name == "top_logprobs" else 0
    if type(least) is not int or (name == "logprobs" and value is not True):
        raise _refused(f"{name} must be {'a whole number' if name == 'top_logprobs' else 'true'}, got {value!r}")
    if told is None or told < least:
        raise _refused(
            f"{name} is {value!r}, the job's --logprobs is {told!r}: a job with --logprobs {least} gives them"
        )


def _check_length(name: str, value: object, most: int) -> None:
    if type(value) is not int or not 1 <= value <= most:
        raise _refused(f"{name} must be a whole number from 1 to --max-new-tokens {most}, got {value!r}")


def _check_same(name: str, value: object, settings: JobSettings, setting: str) -> None:
    own = getattr(settings, setting)
    wanted = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value
    if wanted != own:
        flag = f"--{setting.replace('_', '-')}"
        raise _refused(f"{name} is {value!r}, the job's {flag} is {own!r}: rows of one {name} are a job of their own")


def _refused(message: str) -> RowError:
    return RowError("prompt", "UnsupportedOption", message)
