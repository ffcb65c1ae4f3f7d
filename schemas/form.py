"""Form: what an answer's text must be: a JSON schema, a regular expression, one of some texts, or without some."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import pyarrow as pa

from schemas.errors import Refused
from schemas.named_files import read_named
from schemas.wording import printable

FormKind = Literal["json_schema", "regex", "choices", "bad_words"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """The form of an answer. `text` is the schema's JSON, the expression, or a JSON list of texts.

    Any text is of the form `bad_words` that contains none of them; it may end anywhere.
    """

    kind: FormKind
    text: str

    @property
    def has_end(self) -> bool:
        """Tell whether the form says where an answer ends."""
        return self.kind != "bad_words"

    def __post_init__(self) -> None:
        if self.kind not in get_args(FormKind):
            raise ValueError(f"kind must be one of {', '.join(get_args(FormKind))}, got {self.kind!r}")


FORM = pa.struct([pa.field("kind", pa.string(), nullable=False), pa.field("text", pa.string(), nullable=False)])


def read_json_schema(given: object) -> object:
    """Return the JSON text of a schema that is given as a mapping, as its text, or as the file that it is in; raise
    Refused where the file cannot be read."""
    if isinstance(given, Mapping):
        return json.dumps(given)
    if not isinstance(given, str) or not given.strip() or given.lstrip().startswith("{"):
        return given
    name = printable(given)  # an error of pydantic holds no bytes that are no text
    try:
        text = read_named(given).decode("utf-8-sig")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise Refused(f"--json-schema {name}: the file cannot be read: {reason}") from error
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Refused(f"--json-schema {name} must be a JSON schema, it is no JSON: {error}") from error
    if not isinstance(schema, dict):
        raise Refused(f"--json-schema {name} must be a JSON schema, an object, it is {text.strip()[:40]}")
    return json.dumps(schema)
