"""Lines: answers as one file of lines: JSONL, CSV, LLaVA's answers.jsonl, responses of OpenAI's batch API."""

import base64
import csv
import hashlib
import io
import json
import math
from collections.abc import Callable, Iterator
from typing import Any, Literal

import pyarrow as pa
from pyarrow import types

from pipeline.exports.rows import Choice, Run

Lines = Callable[[pa.Table], bytes]
Formulas = Literal["escape", "keep"]
# What programs that are no parsers of JSON take for the end of a line.
_BREAKS = str.maketrans({"\u2028": "\\u2028", "\u2029": "\\u2029", "\x85": "\\u0085"})
_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what a spreadsheet takes for the start of one
_OPENAI_ENDS = {"stop": "stop", "length": "length", "repetition": "length"}  # cut, one way or the other


def parts_of(run: Run, choice: Choice, lines: Lines, head: bytes = b"") -> Iterator[Callable[[], Iterator[bytes]]]:
    """Yield a part for each file of answers: the bytes of its chosen rows, some at a time, `head` before the first."""

    def part(file: dict[str, Any], before: bytes) -> Iterator[bytes]:
        yield before
        yield from (lines(choice.of(table)) for table in run.batches(file))

    for number, file in enumerate(run.manifest["files"]):
        before = head if number == 0 else b""
        yield lambda file=file, before=before: part(file, before)  # type: ignore[misc]


def to_jsonl(table: pa.Table) -> bytes:
    """Return a line a row, with every column."""
    return b"".join(json_line(row) for row in table.to_pylist())


def csv_lines(formulas: Formulas) -> Lines:
    """Return what writes rows as CSV: nested values as JSON, texts that a spreadsheet would run behind a `'`."""

    def lines(table: pa.Table) -> bytes:
        out = io.StringIO()
        writer = csv.writer(out)
        columns = [_cells(column, formulas) for column in table.columns]
        writer.writerows(zip(*columns, strict=True))
        return out.getvalue().encode()

    return lines


def csv_head(run: Run) -> bytes:
    """Return the line with the columns' names."""
    out = io.StringIO()
    csv.writer(out).writerow([_harmless(name) for name in run.schema().names])
    return out.getvalue().encode()


def llava_lines(run: Run) -> Lines:
    """Return what writes rows as LLaVA's evaluation reads them; a row that failed has an empty text."""
    model = run.model.rstrip("/").rsplit("/", 1)[-1]

    def line(row: dict[str, Any]) -> bytes:
        return json_line(
            {
                "question_id": row["id"],
                "prompt": row["prompt"],
                "text": row["text"] or "",
                "answer_id": _name_of(run, row, 22),
                "model_id": model,
                "metadata": {"prompt_id": row["prompt_id"], "status": row["status"]},
            }
        )

    return _each(line)


def openai_lines(run: Run) -> Lines:
    """Return what writes rows as the responses of a batch job of OpenAI's; `custom_id` is the row's id.

    Where a run asks several prompts it is `id#prompt_id`.
    """
    several = len(run.prompt_ids) > 1

    def line(row: dict[str, Any]) -> bytes:
        name = _name_of(run, row, 32)
        answered = row["status"] == "ok"
        body = _completion(run, row, name) if answered else None
        error = {"code": f"{row['error_stage']}.{row['error_type']}", "message": row["error_message"]}
        return json_line(
            {
                "id": f"batch_req_{name}",
                "custom_id": f"{row['id']}#{row['prompt_id']}" if several else row["id"],
                "response": {"status_code": 200, "request_id": f"req_{name}", "body": body} if answered else None,
                "error": None if answered else error,
            }
        )

    return _each(line)


def json_line(value: object) -> bytes:
    """Return a value as one line of JSON, whatever is in it."""
    plain = json.dumps(_plain(value), ensure_ascii=False, allow_nan=False)
    return plain.translate(_BREAKS).encode() + b"\n"


def _completion(run: Run, row: dict[str, Any], name: str) -> dict[str, Any]:
    prompt, drawn = row["num_prompt_tokens"] or 0, row["num_generated_tokens"] or 0
    message = {"role": "assistant", "content": row["text"], "refusal": None}
    end = _OPENAI_ENDS[row["finish_reason"] or "stop"]
    return {
        "id": f"chatcmpl-{name}",
        "object": "chat.completion",
        "created": int(run.begun.timestamp()),
        "model": run.model,
        "choices": [{"index": 0, "message": message, "finish_reason": end, "logprobs": None}],
        "usage": {"prompt_tokens": prompt, "completion_tokens": drawn, "total_tokens": prompt + drawn},
    }


def _each(line: Callable[[dict[str, Any]], bytes]) -> Lines:
    return lambda table: b"".join(map(line, table.to_pylist()))


def _name_of(run: Run, row: dict[str, Any], length: int) -> str:
    """Return a name of an answer that no other has, the same every time."""
    told = json.dumps([run.description["run"], str(row["id"]), row["prompt_id"]])
    return hashlib.sha256(told.encode()).hexdigest()[:length]


def _plain(value: object) -> object:
    """Return a value as JSON has it: bytes as base64, times and decimals as text, numbers that are none as null."""
    match value:
        case None | str() | bool() | int():
            return value
        case float():
            return value if math.isfinite(value) else None
        case bytes():
            return base64.b64encode(value).decode()
        case dict():
            return {str(name): _plain(one) for name, one in value.items()}
        case list() | tuple():
            return [_plain(one) for one in value]
        case _:
            return value.isoformat() if hasattr(value, "isoformat") else str(value)


def _cells(column: pa.ChunkedArray, formulas: Formulas) -> list[object]:
    values = column.to_pylist()
    if types.is_string(column.type) or types.is_large_string(column.type):
        return values if formulas == "keep" else [value and _harmless(value) for value in values]
    if types.is_nested(column.type):
        return [None if value is None else json.dumps(_plain(value), ensure_ascii=False) for value in values]
    return [_plain(value) for value in values]


def _harmless(text: str) -> str:
    return f"'{text}" if text.startswith(_FORMULA) else text
