"""Request: one input row, whatever file it came from."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import islice, pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from schemas.errors import Failure


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageRef:
    """An image as a row has it: its encoded bytes, or a URI to fetch them from. Bytes win where both are set.

    `table` is the file whose row names the URI, None where the user did: rows may not read everything that users may.
    """

    data: bytes | memoryview | None = None
    uri: str | None = None
    table: str | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """The images of one row, in order, and what it asks itself; the job's prompts apply where it asks nothing.

    `messages` is the JSON text of a list of {role, content}; it says where every image stands, and wins over `prompt`.
    `values` are the row's columns that the job's prompts name, as text. `failure` says why nothing but the id could be
    read of the row. `table` is the file that the row was read from, None where the input's file is the image. `options`
    is the JSON text of what the row asks of its own answer, as its longest length.
    """

    id: str
    images: tuple[ImageRef, ...]
    prompt: str | None = None
    messages: str | None = None
    values: Mapping[str, str | None] = field(default_factory=dict)
    failure: Failure | None = None
    table: str | None = field(default=None, compare=False)
    options: str | None = None


FAILURE = pa.struct([pa.field(name, pa.string(), nullable=False) for name in ("stage", "type", "message")])
REQUEST_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field(
            "images",
            pa.list_(pa.struct([pa.field("data", pa.large_binary()), pa.field("uri", pa.string())])),
            nullable=False,  # may be empty; data or uri may be null, preprocess says what is missing
        ),
        pa.field("prompt", pa.string()),  # null where the job's prompts or the row's messages apply
        pa.field("messages", pa.string()),  # JSON text of [{role, content}, ...]; null where the row has none
        pa.field("values", pa.map_(pa.string(), pa.string()), nullable=False),  # of the columns that prompts name
        pa.field("failure", FAILURE),  # null where the row could be read
        pa.field("table", pa.string()),  # the file that the row is in; null where the file is the image
        pa.field("options", pa.string()),  # JSON text of {name: value}; null where the row asks none
    ]
)


def requests_to_table(requests: Sequence[Request]) -> pa.Table:
    """Return a table of REQUEST_SCHEMA, one row a request."""
    rows = [
        {
            "id": request.id,
            "images": [{"data": image.data, "uri": image.uri} for image in request.images],
            "prompt": request.prompt,
            "messages": request.messages,
            "values": list(request.values.items()),
            "failure": request.failure and asdict(request.failure),
            "table": request.table,
            "options": request.options,
        }
        for request in requests
    ]
    return pa.Table.from_pylist(rows, schema=REQUEST_SCHEMA)


def table_to_requests(table: pa.Table) -> list[Request]:
    """Return the requests of a table that starts with REQUEST_SCHEMA's columns; columns kept for the answers are
    ignored. Bytes of images are views of the table's memory: those of all rows at once may be more than a copy of."""
    small = table.select([name for name in REQUEST_SCHEMA.names if name != "images"]).to_pylist()
    images = [of_row for chunk in table["images"].chunks for of_row in _images(chunk)]
    return [_row_to_request(row, own) for row, own in zip(small, images, strict=True)]


def _images(lists: pa.ListArray) -> list[tuple[ImageRef, ...]]:
    structs = lists.flatten()
    data, uris = _views(pc.struct_field(structs, "data")), pc.struct_field(structs, "uri").to_pylist()
    refs = iter([ImageRef(data=view, uri=uri) for view, uri in zip(data, uris, strict=True)])
    return [tuple(islice(refs, length or 0)) for length in lists.value_lengths().to_pylist()]


def _views(values: pa.LargeBinaryArray) -> list[memoryview | None]:
    _, offsets, content = values.buffers()
    bounds = (
        np.frombuffer(offsets, np.int64)[values.offset : values.offset + len(values) + 1].tolist() if offsets else []
    )
    whole = memoryview(content).cast("B") if content else memoryview(b"")
    valid = values.is_valid().to_pylist()
    return [whole[start:stop] if there else None for there, (start, stop) in zip(valid, pairwise(bounds), strict=True)]


def _row_to_request(row: dict[str, Any], images: tuple[ImageRef, ...]) -> Request:
    images = tuple(replace(image, table=row["table"]) for image in images) if row["table"] else images
    row["values"] = dict(row["values"])
    row["failure"] = Failure(**row["failure"]) if row["failure"] else None
    return Request(**row, images=images)
