"""Request: one input row, whatever file it came from."""

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageRef:
    """Where an image is: its encoded bytes, or a URI to fetch them from. Bytes win where both are set."""

    data: bytes | None = None
    uri: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """The images of one row, in order, and its own prompt; `prompt` is None where the job's prompts apply."""

    id: str
    images: tuple[ImageRef, ...]
    prompt: str | None = None


REQUEST_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field(
            "images",
            pa.list_(pa.struct([pa.field("data", pa.large_binary()), pa.field("uri", pa.string())])),
            nullable=False,  # may be empty; data or uri may be null, preprocess says what is missing
        ),
        pa.field("prompt", pa.string()),  # null where the job's prompts apply
    ]
)


def requests_to_table(requests: Sequence[Request]) -> pa.Table:
    """A table of REQUEST_SCHEMA, one row a request."""
    rows = [
        {"id": r.id, "images": [{"data": i.data, "uri": i.uri} for i in r.images], "prompt": r.prompt} for r in requests
    ]
    return pa.Table.from_pylist(rows, schema=REQUEST_SCHEMA)


def table_to_requests(table: pa.Table) -> list[Request]:
    """The requests of a table that starts with REQUEST_SCHEMA's columns; columns kept for the answers are ignored."""
    rows = table.select(REQUEST_SCHEMA.names).to_pylist()
    return [
        Request(id=row["id"], images=tuple(ImageRef(**image) for image in row["images"]), prompt=row["prompt"])
        for row in rows
    ]
