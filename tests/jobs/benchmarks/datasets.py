"""Small Parquet files in the layouts of published benchmarks, one function a benchmark."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
TEXT = pa.string()
TEXTS = pa.list_(TEXT)

Row = dict[str, Any]


def picture(name: str) -> Row:
    """A cell of an image column; nobody here decodes it."""
    return {"bytes": f"the bytes of {name}".encode(), "path": f"{name}.jpg"}


def write(folder: Path, rows: list[Row], columns: dict[str, pa.DataType], file: str = "a.parquet") -> str:
    """A Parquet file with two rows a row group; the folder as a path to read."""
    path = folder / file
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=pa.schema(columns)), path, row_group_size=2)
    return str(folder)


def vqav2(folder: Path) -> str:
    answer = pa.struct([("answer", TEXT), ("answer_confidence", TEXT), ("answer_id", pa.int64())])
    columns = {
        "question_type": TEXT,
        "multiple_choice_answer": TEXT,
        "answers": pa.list_(answer),
        "image_id": pa.int64(),
        "answer_type": TEXT,
        "question_id": pa.int64(),
        "question": TEXT,
        "image": IMAGE,
    }
    asked = [
        ("Where is he looking?", ["down"] * 9 + ["at table"], "other"),
        ("Is it sunny?", ["yes"] * 10, "yes/no"),
        ("How many?", ["2"] * 2 + ["two"] + ["3"] * 7, "number"),
    ]
    rows = [
        {
            "answers": [{"answer": text, "answer_confidence": "yes", "answer_id": n} for n, text in enumerate(answers)],
            "answer_type": kind,
            "question_id": 262148000 + number,
            "question": question,
            "image": picture(question),
        }
        for number, (question, answers, kind) in enumerate(asked)
    ]
    return write(folder, rows, columns)


def textvqa(folder: Path) -> str:
    columns = {"question_id": pa.int32(), "question": TEXT, "image": IMAGE, "ocr_tokens": TEXTS, "answers": TEXTS}
    rows = [
        {
            "question_id": 34602,
            "question": "what is the brand of this Camera?",
            "image": picture("camera"),
            "ocr_tokens": ["DAKOTA", "DIGITAL"],
            "answers": ["nous les gosses", "dakota", "clos culombu"] + ["Dakota Digital"] * 7,
        },
        {
            "question_id": 34603,
            "question": "what does it say?",
            "image": picture("sign"),
            "ocr_tokens": [],
            "answers": ["copenhagen"] * 10,
        },
    ]
    return write(folder, rows, columns)


def vizwiz(folder: Path) -> str:
    columns = {"question_id": TEXT, "image": IMAGE, "question": TEXT, "answers": TEXTS, "category": TEXT}
    row = {
        "question_id": "VizWiz_val_00000000",
        "image": picture("a can"),
        "question": "Can you tell me what is in this can please?",
        "answers": ["soda", "coca cola", "unanswerable", *["coca cola 0"] * 4, "coca cola", "soda", "coke 0"],
        "category": "other",
    }
    return write(folder, [row], columns)


def gqa(folder: Path) -> str:
    columns = dict.fromkeys(("id", "imageId", "question", "answer"), TEXT)
    asked = [
        {"id": "201307251", "imageId": "n161313", "question": "Is it overcast?", "answer": "no"},
        {"id": "201640614", "imageId": "n235859", "question": "Who is wearing the dress?", "answer": "woman"},
        {"id": "201307252", "imageId": "n161313", "question": "What is cut?", "answer": "grass"},
    ]
    images = [{"id": id, "image": picture(id)} for id in ("n235859", "n161313")]
    write(folder, asked, columns, "testdev_balanced_instructions/testdev-00000-of-00001.parquet")
    return write(folder, images, {"id": TEXT, "image": IMAGE}, "testdev_balanced_images/testdev-00000-of-00001.parquet")


def docvqa(folder: Path) -> str:
    columns = {"questionId": TEXT, "question": TEXT, "image": IMAGE, "docId": pa.int64(), "answers": TEXTS}
    row = {
        "questionId": "49153",
        "question": "What is the ‘actual’ value per 1000, during the year 1975?",
        "image": picture("a table"),
        "docId": 14465,
        "answers": ["0.28", "$0.28"],
    }
    return write(folder, [row], columns)


def chartqa(folder: Path) -> str:
    columns = {"type": TEXT, "question": TEXT, "answer": TEXT, "image": IMAGE}
    rows = [
        {"type": "human_test", "question": "How many items?", "answer": "14", "image": picture("food")},
        {"type": "augmented_test", "question": "Which one?", "answer": "Peru", "image": picture("map")},
    ]
    return write(folder, rows, columns)


def ai2d(folder: Path) -> str:
    columns = {"question": TEXT, "options": TEXTS, "answer": TEXT, "image": IMAGE}
    row = {"question": "which is a leaf?", "options": ["k", "a", "b"], "answer": "2", "image": picture("a leaf")}
    return write(folder, [row], columns)


def scienceqa(folder: Path) -> str:
    columns = {"image": IMAGE, "question": TEXT, "choices": TEXTS, "answer": pa.int8(), "hint": TEXT, "subject": TEXT}
    rows = [
        {
            "image": picture("a map"),
            "question": "Which is farthest north?",
            "choices": ["Kansas", "Maine"],
            "answer": 1,
            "hint": "Look at the map.",
            "subject": "social science",
        },
        {
            "image": None,
            "question": "Is it a noun?",
            "choices": ["no", "yes"],
            "answer": 1,
            "hint": "",
            "subject": "language science",
        },
    ]
    return write(folder, rows, columns)


def mmmu(folder: Path) -> str:
    names = [f"image_{number}" for number in range(1, 8)]
    texts = ("id", "question", "options", "answer", "question_type")
    columns = {**dict.fromkeys(texts, TEXT), **dict.fromkeys(names, IMAGE)}
    rows = [
        {
            "id": "validation_Art_Theory_12",
            "question": "Which of <image 2> and <image 1> is older?",
            "options": "['<image 3>', \"none of 'em\"]",
            "answer": "B",
            "question_type": "multiple-choice",
            **{name: picture(name) for name in names[:4]},
        },
        {
            "id": "validation_Math_3",
            "question": "<image 1> What is x?",
            "options": "[]",
            "answer": "['1.5', '3/2']",
            "question_type": "open",
            "image_1": picture("an axis"),
        },
    ]
    return write(folder, rows, columns)


_MMBENCH = (
    (241, "nan", ("cat", "dog"), "B"),
    (1_000_241, "nan", ("dog", "cat"), "A"),
    (252, "It barks.", ("cat", "dog", "cow", "nan"), "B"),
)


def mmbench(folder: Path, asked: Sequence[tuple[int, str, Sequence[str | None], str]] = _MMBENCH) -> str:
    texts = ("question", "hint", "answer", *"ABCD", "category", "source", "L2-category", "comment", "split")
    columns = {"index": pa.int64(), **dict.fromkeys(texts, TEXT), "image": IMAGE}
    rows = [
        {
            "index": index,
            "question": "What is it?",
            "hint": hint,
            "answer": answer,
            **dict(zip("ABCD", options, strict=False)),
            "category": "identity_reasoning",
            "image": picture(str(index)),
        }
        for index, hint, options, answer in asked
    ]
    return write(folder, rows, columns)


def seedbench(folder: Path) -> str:
    texts = ("answer", "choice_a", "choice_b", "choice_c", "choice_d", "data_type", "question_id", "question")
    columns = {**dict.fromkeys(texts, TEXT), "question_type_id": pa.int16(), "image": pa.list_(IMAGE)}
    row = {
        **{f"choice_{letter}": f"{number} towels" for number, letter in enumerate("abcd", 1)},
        "answer": "A",
        "data_type": "image",
        "question_id": "101669",
        "question": "How many towels are in the image?",
        "question_type_id": 5,
        "image": [picture("towels")],
    }
    video = {**row, "data_type": "video", "question_id": "1", "image": [picture("frame")] * 8}
    return write(folder, [video, row], columns)


def pope(folder: Path) -> str:
    texts = ("id", "question_id", "question", "answer", "image_source", "category")
    columns = {**dict.fromkeys(texts, TEXT), "image": IMAGE}
    asked = [("snowboard", "yes", "random"), ("backpack", "no", "random"), ("dog", "yes", "popular")]
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
        for number, (thing, answer, category) in enumerate(asked)
    ]
    return write(folder, rows, columns)


def ocrbench(folder: Path) -> str:
    columns = {"dataset": TEXT, "question": TEXT, "question_type": TEXT, "answer": TEXTS, "image": IMAGE}
    rows = [
        {
            "dataset": "IIIT5K",
            "question": "what is written in the image?",
            "question_type": "Regular Text Recognition",
            "answer": ["CENTRE"],
            "image": picture("a word"),
        },
        {
            "dataset": "HME100k",
            "question": "Please write out the expression of the formula in the image using LaTeX format.",
            "question_type": "Handwritten Mathematical Expression Recognition",
            "answer": ["x ^ { 2 } = A"],
            "image": picture("a formula"),
        },
    ]
    return write(folder, rows, columns)


def coco(folder: Path) -> str:
    columns = {"question_id": TEXT, "image": IMAGE, "question": TEXT, "answer": TEXTS, "id": pa.int64()}
    captions = [
        ["A black Honda motorcycle parked in a garage.", "A motorcycle, black."],
        ["Two dogs on the grass.", "Dogs run in a field."],
    ]
    rows = [
        {"question_id": f"{number:012}.jpg", "image": picture(str(number)), "answer": some, "id": number}
        for number, some in enumerate(captions)
    ]
    return write(folder, rows, columns)


def own(folder: Path) -> str:
    image = folder / "pictures" / "a.png"
    image.parent.mkdir(parents=True)
    image.write_bytes(b"the bytes of a")
    asked = {"image": "pictures/a.png", "question": "What is it?"}
    rows = [
        {"id": 1, **asked, "answer": ["a cat", "cat"], "split": "animals"},
        {"id": 2, **asked, "answer": "B", "options": ["dog", "cat"], "metric": "choice"},
        {"id": 3, **asked, "answer": "Cats\nwelcome", "metric": "reading"},
    ]
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder)
