"""Prompts of benchmarks: what LLaVA-NeXT's evaluation adds to a question, and templates that ask otherwise."""

import string
from collections.abc import Mapping

from schemas.errors import Refused

SHORT_ANSWER = "Answer the question using a single word or phrase."
LETTER_ONLY = "Answer with the option's letter from the given choices directly."


def fill(template: str, fields: Mapping[str, str]) -> str:
    """Return the template with its {fields} filled in; a line whose fields are all empty is left out. `{{` is a brace.

    A field that the benchmark does not have is an error that names those it has.
    """
    lines = []
    for line in template.split("\n"):
        named = _fields_of(line, template)
        for name in named:
            if name not in fields:
                choices = " but " + ", ".join(f"{{{field}}}" for field in fields) if fields else ""
                raise Refused(f"prompt must have no fields{choices}, got {{{name}}} in {template!r}")
        if not named or any(fields[name] for name in named):
            lines.append(line.format_map(fields))
    return "\n".join(lines)


def _fields_of(line: str, template: str) -> list[str]:
    try:
        return [name for _, name, _, _ in string.Formatter().parse(line) if name is not None]
    except ValueError as error:
        raise Refused(f"prompt must double braces that name no field, got {template!r}: {error}") from error
