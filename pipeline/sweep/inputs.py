"""Inputs: a benchmark's questions as Parquet that jobs read, written once under the sweep's folder."""

import io
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import TypeAdapter

from pipeline.run_folder.run import read_record
from pipeline.storage import filesystem as fs
from pipeline.storage.hub import at_commit
from pipeline.sweep.cells import Asking
from schemas.benchmark import Question
from schemas.errors import Refused
from schemas.wording import one_line

INPUT_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("images", pa.list_(pa.large_binary()), nullable=False),  # encoded as the dataset has them
        pa.field("prompt", pa.string(), nullable=False),  # for people; the job asks the messages
        pa.field("messages", pa.string(), nullable=False),  # which say where no image is meant
    ]
)
ROWS_A_GROUP = 100
FILE_BYTES = 128 * 2**20
_SAME_PICTURES = 64 * 2**20  # of pictures in a row group that several questions share: stored once up to this size


def write_input(asking: Asking) -> None:
    """Write the questions where they are not there yet; raise ValueError where there are none."""
    if is_made(asking):
        return
    fs.delete(asking.folder)  # what a kill left
    read = replace(asking, data=_at_commit(asking.data))
    rows = sum(_write_files(read))
    if not rows:
        raise Refused(f"{asking.data} must have at least one question for {asking.name}, it has none")
    made = _Made(origin=asking.origin(), read=read.data, rows=rows)
    fs.write_atomic(_made_path(asking), json.dumps(asdict(made)).encode())


def as_written(asking: Asking) -> Asking:
    """Return the same questions for good: of the commit that they were written from, where the data has commits."""
    made = _read_made(asking)
    return asking if made is None else replace(asking, data=made.read or asking.data)


def is_made(asking: Asking) -> bool:
    """Return whether its input is written and made from what is asked now; raise Refused for one made from other
    data."""
    made = _read_made(asking)
    if made is not None and made.origin != asking.origin():
        raise Refused(
            f"{asking.folder} holds questions made from {made.origin}, the sweep now asks for {asking.origin()}: "
            "choose a new output, or another name for the benchmark or the prompt"
        )
    return made is not None


def _at_commit(data: str) -> str:
    try:
        return at_commit(data)
    except OSError as error:
        raise Refused(f"{data} cannot be read: {one_line(error)}") from error


def _write_files(asking: Asking) -> Iterator[int]:
    """Write files of a good size; yield the rows of each."""
    groups = _groups(asking)
    for number, first in enumerate(groups):
        buffer, rows = io.BytesIO(), 0
        with pq.ParquetWriter(
            buffer, INPUT_SCHEMA, compression="zstd", dictionary_pagesize_limit=_SAME_PICTURES
        ) as file:
            group: pa.Table | None = first
            while group is not None:
                file.write_table(group)
                rows += group.num_rows
                group = next(groups, None) if buffer.tell() < FILE_BYTES else None
        fs.write_atomic(fs.join(asking.folder, f"part-{number:05d}.parquet"), buffer.getvalue())
        yield rows


def _groups(asking: Asking) -> Iterator[pa.Table]:
    questions = asking.questions()
    while some := list(islice(questions, ROWS_A_GROUP)):
        yield pa.Table.from_pylist([_row(question) for question in some], schema=INPUT_SCHEMA)


def _row(question: Question) -> dict[str, object]:
    content = [{"type": "image"}] * len(question.images) + [{"type": "text", "text": question.prompt}]
    messages = json.dumps([{"role": "user", "content": content}])
    return {"id": question.id, "images": list(question.images), "prompt": question.prompt, "messages": messages}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Made:
    """Origin of an input: what was asked, the data at their commit, the questions that it had."""

    origin: dict[str, Any]
    rows: int
    read: str | None = None


def _read_made(asking: Asking) -> _Made | None:
    return read_record(_made_path(asking), TypeAdapter(_Made), _ADVICE)


_ADVICE = "put it back as it was, or choose a new output"


def _made_path(asking: Asking) -> str:
    """Return the path of the file that is written last: with it the input is whole."""
    return fs.join(asking.folder, "made.json")
