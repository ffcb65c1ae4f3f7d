"""Small Parquet files in the layouts of published benchmarks, one function a benchmark."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def picture(name: str) -> dict[str, object]:
    """A cell of an image column; nobody here decodes it."""
    return {"bytes": f"the bytes of {name}".encode(), "path": f"{name}.jpg"}


def write(folder: Path, rows: list[dict[str, object]], schema: pa.Schema, file: str = "a.parquet") -> str:
    """A Parquet file with two rows a row group; the folder as a path to read."""
    path = folder / file
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path, row_group_size=2)
    return str(folder)


def vqav2(folder: Path) -> str:
    answer = pa.struct([("answer", pa.string()), ("answer_confidence", pa.string()), ("answer_id", pa.int64())])
    schema = pa.schema(
        {
            "question_type": pa.string(),
            "multiple_choice_answer": pa.string(),
            "answers": pa.list_(answer),
            "image_id": pa.int64(),
            "answer_type": pa.string(),
            "question_id": pa.int64(),
            "question": pa.string(),
            "image": IMAGE,
        }
    )
    rows = [
        _vqav2_row(262148000, "Where is he looking?", ["down"] * 9 + ["at table"], "other"),
        _vqav2_row(262148001, "Is it sunny?", ["yes"] * 10, "yes/no"),
        _vqav2_row(262148002, "How many?", ["2"] * 2 + ["two"] + ["3"] * 7, "number"),
    ]
    return write(folder, rows, schema)


def _vqav2_row(id: int, question: str, answers: list[str], answer_type: str) -> dict[str, object]:
    annotated = [{"answer": text, "answer_confidence": "yes", "answer_id": n} for n, text in enumerate(answers, 1)]
    return {
        "question_type": "none of the above",
        "multiple_choice_answer": answers[0],
        "answers": annotated,
        "image_id": id // 1000,
        "answer_type": answer_type,
        "question_id": id,
        "question": question,
        "image": picture(str(id)),
    }


def textvqa(folder: Path) -> str:
    words = pa.list_(pa.string())
    schema = pa.schema(
        {
            "image_id": pa.string(),
            "question_id": pa.int32(),
            "question": pa.string(),
            "image": IMAGE,
            "ocr_tokens": words,
            "answers": words,
        }
    )
    rows = [
        {
            "image_id": "003a8ae2ef43b901",
            "question_id": 34602,
            "question": "what is the brand of this Camera?",
            "image": picture("camera"),
            "ocr_tokens": ["DAKOTA", "DIGITAL"],
            "answers": ["nous les gosses", "dakota", "clos culombu"] + ["Dakota Digital"] * 7,
        },
        {
            "image_id": "003a8ae2ef43b902",
            "question_id": 34603,
            "question": "what does it say?",
            "image": picture("sign"),
            "ocr_tokens": [],
            "answers": ["copenhagen"] * 10,
        },
    ]
    return write(folder, rows, schema)


def pope(folder: Path) -> str:
    text = ("id", "question_id", "question", "answer", "image_source", "category")
    schema = pa.schema({**dict.fromkeys(text, pa.string()), "image": IMAGE})
    rows = [
        {
            "id": str(number),
            "question_id": str(number % 2 + 1),
            "question": f"Is there a {thing} in the image?",
            "answer": answer,
            "image_source": "COCO_val2014_000000310196",
            "image": picture(thing),
            "category": category,
        }
        for number, (thing, answer, category) in enumerate(
            [("snowboard", "yes", "random"), ("backpack", "no", "random"), ("dog", "yes", "popular")]
        )
    ]
    return write(folder, rows, schema)
