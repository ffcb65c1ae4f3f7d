"""Batch requests as OpenAI's clients write them: what they ask becomes columns, what they ask of the answer options.

An option that this pipeline has no word for fails its row by name; none is passed over.
"""

from collections.abc import Mapping
from typing import Any

from pipeline.sources.columns import OPTIONS
from schemas.errors import Failure

_URL = "/v1/chat/completions"
# What says nothing about the answer: the job has one model, and rows come back as rows.
_IRRELEVANT = ("model", "messages", "user", "metadata", "store", "service_tier", "stream_options")
_OPTIONS = (
    "max_tokens",
    "max_completion_tokens",
    "temperature",
    "top_p",
    "top_k",
    "seed",
    "stop",
    "repetition_penalty",
)
_NOTHING_ASKED: tuple[Any, ...] = (None, False, 0, 0.0, [], {})
_DEFAULTS: Mapping[str, Any] = {"n": 1, "response_format": {"type": "text"}, "tool_choice": "none"}


def as_row(value: Mapping[str, Any], where: str) -> Mapping[str, Any] | Failure:
    """Return an object as the row that it is; a batch request as its `custom_id`, its messages and its options."""
    body = value.get("body")
    if "custom_id" not in value or not isinstance(body, dict):
        return value
    if value.get("url", _URL) != _URL:
        return _refused(f"url of {where} must be {_URL}, got {value['url']!r}")
    options = {}
    for name, asked in body.items():
        if name in _OPTIONS:
            options[name] = asked
        elif name not in _IRRELEVANT and asked not in _NOTHING_ASKED and asked != _DEFAULTS.get(name):
            return _refused(f"body.{name} of {where} is nothing that this pipeline does: leave it out")
    rest = {name: one for name, one in value.items() if name not in ("body", "method", "url")}
    options = {name: one for name, one in options.items() if one is not None}
    return {**rest, "messages": body.get("messages"), OPTIONS: options or None}


def _refused(message: str) -> Failure:
    return Failure(stage="prompt", type="UnsupportedOption", message=message)
