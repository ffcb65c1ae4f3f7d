"""Batch requests as OpenAI's clients write them: what they ask becomes columns, what they ask of the answer options."""

from collections.abc import Mapping
from typing import Any

from pipeline.preprocess.options import RESPONSE_FORMAT, schema_asked
from pipeline.sources.columns import OPTIONS

_URL = "/v1/chat/completions"
# What says nothing about the answer: the job has one model, and rows come back as rows.
_IRRELEVANT = ("model", "messages", "user", "metadata", "store", "service_tier", "stream_options")
_NOTHING_ASKED: tuple[Any, ...] = (None, False, [], {})
_DEFAULTS: Mapping[str, Any] = {
    "n": 1,
    "response_format": {"type": "text"},
    "tool_choice": "none",
    "presence_penalty": 0,
    "frequency_penalty": 0,
}


def as_row(value: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return an object as the row that it is; a batch request as its `custom_id`, its messages and its options.

    Options include those that this pipeline has no word for: whoever reads them refuses the row by their name. The
    schema of a `response_format` is a column as well, "" where there is none, for --json-schema-column to name.
    """
    body = value.get("body")
    if "custom_id" not in value or not isinstance(body, dict):
        return value
    options = {
        name: asked
        for name, asked in body.items()
        if name not in _IRRELEVANT and asked not in _NOTHING_ASKED and (name, asked) not in _DEFAULTS.items()
    }
    if value.get("url", _URL) != _URL:
        options["url"] = value["url"]
    schema = schema_asked(options.get(RESPONSE_FORMAT)) or ""
    rest = {name: one for name, one in value.items() if name not in ("body", "method", "url")}
    return {**rest, "messages": body.get("messages"), RESPONSE_FORMAT: schema, OPTIONS: options or None}
