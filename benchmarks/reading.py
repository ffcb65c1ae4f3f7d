"""What reading costs in errors: prepares inputs with their true texts, and reads them with Tesseract for comparison.

    python -m benchmarks.reading heldout build/ocr                      the demo model's held-out readings, as Parquet
    python -m benchmarks.reading long build/ocr                         their lines, sixteen to a page
    python -m benchmarks.reading columns build/ocr                      two of these pages side by side, as one
    python -m benchmarks.reading pages build/ocr manual.pdf --pages 20  pages of a PDF, with their text layer
    python -m benchmarks.reading tesseract build/ocr/heldout.parquet    Tesseract's error rates (pip install tesserocr)
    python -m benchmarks.reading noise build/ocr/pages.parquet          error rates of the truth itself, and of noise

A Parquet file has the columns id, image and truth: `llava-batch ocr --input FILE --reference-column truth` scores a
model on it. The last line of stdout is one JSON object.
"""

import argparse
import io
import json
import random
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageDraw, ImageFont

from demo.heldout import read_items
from pipeline.preprocess.pdf import PdfPage, page_uri, render_page
from pipeline.scores import NORMALISATION
from pipeline.scoring.reading import add_up, read_against

PAGES_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("image", pa.large_binary(), nullable=False),
        pa.field("truth", pa.string(), nullable=False),
    ]
)
_MOST_PIXELS = 100_000_000
_LINES, _LONG_PAGES = 16, 12
_NOISE = 0.05  # share of the characters that are replaced


def write_heldout(folder: Path) -> Path:
    """The held-out readings; letters smaller than the demo model promises are left out."""
    items = [item for item in read_items() if item.kind == "read"]
    return _write(
        folder / "heldout.parquet",
        ({"id": item.id, "image": item.image, "truth": item.truth} for item in items),
    )


def write_long(folder: Path) -> Path:
    """Pages of more lines than the demo model reads at once, in a plain face and words that training never saw."""
    texts = _long_texts()
    rows = [{"id": f"long-{i:02}", "image": _png(typeset(t)), "truth": "\n".join(t)} for i, t in enumerate(texts)]
    return _write(folder / "long.parquet", rows)


def write_columns(folder: Path) -> Path:
    """The same lines on pages of two columns; the truth is the one column and then the other."""
    texts = _long_texts()
    pairs = [(texts[i], texts[i + 1]) for i in range(0, len(texts) - 1, 2)]
    rows = [
        {"id": f"columns-{i:02}", "image": _png(side_by_side(*pair)), "truth": "\n".join(pair[0] + pair[1])}
        for i, pair in enumerate(pairs)
    ]
    return _write(folder / "columns.parquet", rows)


def _long_texts() -> list[list[str]]:
    lines = [line for item in read_items() if item.kind == "read" for line in item.truth.split("\n")]
    return [lines[start : start + _LINES] for start in range(0, len(lines) - _LINES + 1, _LINES)][:_LONG_PAGES]


def side_by_side(left: list[str], right: list[str]) -> Image.Image:
    """A page of two columns."""
    columns = [typeset(left), typeset(right)]
    page = Image.new("RGB", (sum(one.width for one in columns), max(one.height for one in columns)), "white")
    for one, x in zip(columns, (0, columns[0].width), strict=True):
        page.paste(one, (x, 0))
    return page


def typeset(lines: list[str]) -> Image.Image:
    """Lines in black on a white page, large enough for the demo model where they are seen at their size."""
    font = ImageFont.load_default(size=28)
    page = Image.new("RGB", (460, 40 + 44 * len(lines)), "white")
    for number, line in enumerate(lines):
        ImageDraw.Draw(page).text((16, 20 + 44 * number), line, fill="black", font=font)
    return page


def write_pages(folder: Path, pdf: Path, pages: int, dpi: int) -> Path:
    """Pages from the middle of a PDF, where text is plainest, rendered; their text layer is the truth."""
    from pypdfium2 import PdfDocument  # an extra

    data = pdf.read_bytes()
    with PdfDocument(data) as document:
        first = max(0, (len(document) - pages) // 2)
        numbers = range(first, min(len(document), first + pages))
        truths = [document[number].get_textpage().get_text_range() for number in numbers]
    rows = [
        {
            "id": page_uri(pdf.name, number + 1),
            "image": _png(render_page(PdfPage(data=data, page=number + 1, dpi=dpi), _MOST_PIXELS)),
            "truth": truth,
        }
        for number, truth in zip(numbers, truths, strict=True)
    ]
    return _write(folder / "pages.parquet", rows)


def read_with_tesseract(path: Path, tessdata: str, psm: int) -> dict[str, float]:
    """Tesseract's error rates; psm 3 finds the layout of a page, 6 takes it for one block of text."""
    from tesserocr import PyTessBaseAPI  # for this comparison alone

    with PyTessBaseAPI(path=tessdata, lang="eng", psm=psm) as tesseract:

        def read(image: Image.Image) -> str:
            tesseract.SetImage(image)
            return str(tesseract.GetUTF8Text())

        return _rates(path, lambda row: read(Image.open(io.BytesIO(row["image"])).convert("RGB")))


def replace_some(truth: str, rng: random.Random) -> str:
    """The truth with one letter in twenty replaced: what a scorer must notice."""
    return "".join("#" if rng.random() < _NOISE and not letter.isspace() else letter for letter in truth)


def _rates(path: Path, read: Callable[[dict[str, bytes]], str]) -> dict[str, float]:
    started, readings = time.monotonic(), []
    for row in pq.read_table(path).to_pylist():
        readings.append(read_against(row["truth"], read(row), NORMALISATION))
    total = add_up(readings)
    seconds = (time.monotonic() - started) / max(1, len(readings))
    return {"rows": len(readings), "cer": round(total.cer, 4), "wer": round(total.wer, 4), "s_a_row": round(seconds, 3)}


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def _write(path: Path, rows: Iterable[Mapping[str, object]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(rows), schema=PAGES_SCHEMA), path, row_group_size=20)
    return path


def main() -> None:
    """Do what is asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    heldout = commands.add_parser("heldout")
    heldout.add_argument("folder", type=Path)
    long = commands.add_parser("long")
    long.add_argument("folder", type=Path)
    columns = commands.add_parser("columns")
    columns.add_argument("folder", type=Path)
    pages = commands.add_parser("pages")
    pages.add_argument("folder", type=Path)
    pages.add_argument("pdf", type=Path)
    pages.add_argument("--pages", type=int, default=20)
    pages.add_argument("--dpi", type=int, default=150)
    tesseract = commands.add_parser("tesseract")
    tesseract.add_argument("file", type=Path)
    tesseract.add_argument("--tessdata", default="/usr/share/tesseract-ocr/5/tessdata", help="the folder of eng")
    tesseract.add_argument("--psm", type=int, default=3)
    noise = commands.add_parser("noise")
    noise.add_argument("file", type=Path)
    flags = parser.parse_args()
    sys.stdout.write(json.dumps(_run(flags)) + "\n")


def _run(flags: argparse.Namespace) -> dict[str, object]:
    match flags.command:
        case "heldout":
            return {"file": str(write_heldout(flags.folder))}
        case "long":
            return {"file": str(write_long(flags.folder))}
        case "columns":
            return {"file": str(write_columns(flags.folder))}
        case "pages":
            return {"file": str(write_pages(flags.folder, flags.pdf, flags.pages, flags.dpi))}
        case "tesseract":
            return {**read_with_tesseract(flags.file, flags.tessdata, flags.psm)}
        case _:
            rng = random.Random(0)
            same = _rates(flags.file, lambda row: str(row["truth"]))
            return {"truth": same, "noise": _rates(flags.file, lambda row: replace_some(str(row["truth"]), rng))}


if __name__ == "__main__":
    main()
