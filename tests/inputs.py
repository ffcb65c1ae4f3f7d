"""Inputs for jobs: Parquet files of real and generated pictures, with rows planted that cannot be answered."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from tests.images import encoded, noise, real_images

STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
SCHEMA = pa.schema([("id", pa.string()), ("image", STRUCT), ("question", pa.string()), ("number", pa.int64())])


def picture(number: int) -> bytes:
    """A JPEG, PNG or WebP of a size and content that follow from the number; every tenth a real photograph."""
    if number % 10 == 0:
        with Image.open(real_images()[number // 10 % 10]) as image:
            image = image.convert("RGB")
            image.thumbnail((400, 400))
            return encoded(image, "JPEG")
    width, height = 24 + number * 37 % 300, 24 + number * 53 % 300
    small = noise(width // 8 + 1, height // 8 + 1, seed=number)
    return encoded(small.resize((width, height)), ("JPEG", "PNG", "WEBP")[number % 3])


def good_row(number: int) -> dict[str, Any]:
    return {
        "id": f"row-{number}",
        "image": {"bytes": picture(number), "path": None},
        "question": f"What is number {number}?",
        "number": number,
    }


def bad_row(number: int, stage: str) -> dict[str, Any]:
    """A row that fails at this stage and at no earlier one."""
    row = good_row(number)
    match stage:
        case "read":
            row["image"] = None
        case "fetch":
            row["image"] = {"bytes": None, "path": "no/such/file.jpg"}
        case "decode":
            row["image"]["bytes"] = row["image"]["bytes"][: len(row["image"]["bytes"]) // 2]
        case "prompt":
            row["question"] = "  "
    return row


def write_parquet(path: Path, rows: Sequence[dict[str, Any]], group_rows: int = 100) -> Path:
    pq.write_table(pa.Table.from_pylist(list(rows), schema=SCHEMA), path, row_group_size=group_rows)
    return path
