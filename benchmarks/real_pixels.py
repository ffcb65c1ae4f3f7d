"""Benchmarks that need no download, in the layouts of published ones: what the demo model can answer, and real pixels.

    python -m benchmarks.real_pixels OUT
    python -m benchmarks.real_pixels OUT --stamps /usr/share/tuxpaint/stamps --pdfs /usr/share/doc

OUT/shapes (VQAv2's layout), OUT/present (POPE's) and OUT/lines (OCRBench's) are the demo model's held-out items.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from demo.heldout import Item, read_items

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
_ANNOTATORS = 10
_ANSWER = pa.struct([("answer", pa.string()), ("answer_confidence", pa.string()), ("answer_id", pa.int64())])
VQAV2_SCHEMA = pa.schema(
    [
        ("question_id", pa.int64()),
        ("question", pa.string()),
        ("image", IMAGE),
        ("answer_type", pa.string()),
        ("answers", pa.list_(_ANSWER)),
    ]
)
POPE_SCHEMA = pa.schema(
    [
        ("question_id", pa.string()),
        ("question", pa.string()),
        ("answer", pa.string()),
        ("image", IMAGE),
        ("category", pa.string()),
    ]
)
TEXTVQA_SCHEMA = pa.schema(
    [
        ("question_id", pa.int64()),
        ("question", pa.string()),
        ("image", IMAGE),
        ("answers", pa.list_(pa.string())),
    ]
)


def write_demo(folder: Path) -> None:
    """The demo model's held-out items as three benchmarks."""
    items = read_items()
    small = [item for item in items if item.kind in ("count", "colour", "place")]
    write(folder / "shapes", [_vqav2_row(number, item) for number, item in enumerate(small)], VQAV2_SCHEMA)
    asked = [item for item in items if item.kind == "yes/no"]
    write(folder / "present", [_pope_row(number, item) for number, item in enumerate(asked)], POPE_SCHEMA)
    read = [item for item in items if item.kind == "read" and "\n" not in item.truth]
    write(folder / "lines", [_textvqa_row(number, item) for number, item in enumerate(read)], TEXTVQA_SCHEMA)


def write(folder: Path, rows: Sequence[dict[str, Any]], schema: pa.Schema) -> None:
    """One Parquet file, a hundred rows a row group."""
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(rows), schema=schema), folder / "test-00000.parquet", row_group_size=100)


def _vqav2_row(number: int, item: Item) -> dict[str, Any]:
    answers = [{"answer": item.truth, "answer_confidence": "yes", "answer_id": n} for n in range(1, _ANNOTATORS + 1)]
    return {
        "question_id": number,
        "question": item.prompt,
        "image": _image(item),
        "answer_type": item.kind,
        "answers": answers,
    }


def _pope_row(number: int, item: Item) -> dict[str, Any]:
    return {
        "question_id": str(number),
        "question": item.prompt,
        "answer": item.truth,
        "image": _image(item),
        "category": "shapes",
    }


def _textvqa_row(number: int, item: Item) -> dict[str, Any]:
    return {
        "question_id": number,
        "question": item.prompt,
        "image": _image(item),
        "answers": [item.truth] * _ANNOTATORS,
    }


def _image(item: Item) -> dict[str, Any]:
    return {"bytes": item.image, "path": f"{item.id}.png"}


def main() -> None:
    """Write the datasets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    flags = parser.parse_args()
    write_demo(flags.out)


if __name__ == "__main__":
    main()
