"""JSON lines: an object a line, LLaVA's question files and OpenAI's batch requests among them."""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import IO, Any

from pipeline.sources.columns import Columns
from pipeline.sources.convention import CONVENTION, Convention
from pipeline.sources.lines import index_lines, read_lines
from pipeline.sources.openai_batch import as_row
from pipeline.sources.records import LOOKED_AT, Indexed, Record, good, schema_of
from pipeline.sources.source import RowRange
from schemas.errors import Failure
from schemas.wording import shortened

SUFFIXES = (".jsonl", ".ndjson", ".jsonlines")


@dataclass(frozen=True, slots=True)
class JsonLines:
    """Files with an object in every line."""

    name: str = "JSON lines"
    convention: Convention = CONVENTION

    def index(self, file: IO[bytes], limit: int | None) -> Indexed:
        """Find the lines; what the first of them hold are the columns."""
        index = index_lines(file, limit)
        file.seek(0)
        first = RowRange(url="the file", name="", start=0, num_rows=min(LOOKED_AT, len(index.lines)))
        return Indexed(index=index, schema=schema_of(good(self.records(file, first, Columns()))))

    def records(self, file: IO[bytes], row_range: RowRange, columns: Columns) -> Iterator[Record | Failure]:
        """Yield the objects of the lines."""
        for number, line in islice(read_lines(file, row_range), row_range.num_rows):
            where = f"line {number} of {row_range.url}"
            yield line if isinstance(line, Failure) else object_in(line, where)


def object_in(text: bytes, where: str) -> Record | Failure:
    """Return the row that JSON text is, a batch request with its own columns."""
    try:
        value = value_of(text)
    except UnicodeDecodeError as error:
        return Failure(stage="read", type="InvalidText", message=f"{where} must be UTF-8 text: {error}; write it anew")
    except (ValueError, RecursionError) as error:
        return Failure(stage="read", type="InvalidJson", message=f"{where} must be a JSON object: {error}")
    if not isinstance(value, dict):
        kind = type(value).__name__
        return Failure(stage="read", type="InvalidJson", message=f"{where} must be a JSON object, it is a {kind}")
    return as_row(value)


def value_of(text: bytes) -> object:
    """Return what JSON text holds; raise ValueError where it is none, or has a field twice, and RecursionError."""
    return _DECODER.decode(text.decode())


def _fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the fields of an object; raise ValueError where one of two values would be passed over, or a name is no
    text."""
    fields = dict(pairs)
    if len(fields) < len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the field {shortened(repr(twice), _SHOWN)} is there twice")
    "".join(fields).encode()  # half a surrogate is none
    return fields


_SHOWN = 60  # letters of a field's name
_DECODER = json.JSONDecoder(object_pairs_hook=_fields)
