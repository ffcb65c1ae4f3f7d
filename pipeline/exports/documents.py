"""Documents: pages joined in their order, those of a PDF or of a folder, one file or one row of JSONL a document."""

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from pipeline.exports.destination import (
    begin_folder,
    check_inside,
    end_folder,
    put_file,
    safe_name,
    write_file,
)
from pipeline.exports.lines import json_line
from pipeline.exports.names import find_collision
from pipeline.exports.rows import Choice, Run
from pipeline.preprocess.pdf import split_page_uri
from pipeline.storage import filesystem as fs
from schemas.errors import Refused
from schemas.wording import printable

DocumentFormat = Literal["markdown", "text"]
_SUFFIX = {"markdown": ".md", "text": ".txt"}
_BETWEEN = "\n\n"
_COLUMNS = ["id", "prompt_id", "status", "text", "finish_reason", "error_stage", "error_type", "num_prompt_tokens"]
_COLUMNS += ["num_generated_tokens"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """One page: its name within its document, its number in the PDF or None, and what was read or went wrong."""

    name: str
    number: int | None
    row: dict[str, Any]

    @property
    def order(self) -> tuple[int, tuple[tuple[int, int, str], ...]]:
        """Return what pages are sorted by: numbers in names as numbers, so that page 10 is behind page 9."""
        return self.number or 0, _natural(self.name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """The pages of one PDF or folder, in their order."""

    name: str
    pages: list[Page] = field(default_factory=list)


def write_documents(run: Run, destination: str, choice: Choice, format: DocumentFormat) -> int:
    """Write a file for each document below a folder; returns how many."""
    check_one_prompt(run, choice)
    _refuse_same_files(run, choice)
    begin_folder(destination, run.key({"to": format, "choice": repr(choice)}))
    written = 0
    for document in documents_of(run, choice):
        url = fs.join(destination, safe_name(_stem(document.name)) + _SUFFIX[format])
        path = fs.local_path(url)
        if path is not None:
            check_inside(fs.local_path(destination) or "", path)
        text, _ = joined(document, _marked[format])
        put_file(url, f"{text}\n".encode())
        written += 1
    end_folder(destination)
    return written


def write_dolma(run: Run, destination: str, choice: Choice) -> int:
    """Write one file of JSONL, a row a document, as Dolma's tools read it; returns how many rows."""
    check_one_prompt(run, choice)
    written = 0

    def rows() -> Iterator[bytes]:
        nonlocal written
        for document in documents_of(run, choice):
            written += 1
            yield json_line(_dolma(run, document))

    write_file(destination, run.key({"to": "dolma", "choice": repr(choice)}), [rows])
    return written


def check_one_prompt(run: Run, choice: Choice) -> None:
    """Raise Refused where a page has several texts."""
    if len(choice.prompt_id or run.prompt_ids) > 1:
        raise Refused(f"a page must have one text, the run has {', '.join(run.prompt_ids)}: choose one by --prompt-id")


def documents_of(run: Run, choice: Choice) -> Iterator[Document]:
    """Yield the documents of the chosen rows, each when its last page has come: those that are begun are in memory."""
    left = Counter(hash(page[0]) for page in _named(run, choice, ["id"]))
    begun: dict[str, Document] = {}
    for name, page in _named(run, choice, _COLUMNS):
        begun.setdefault(name, Document(name=name)).pages.append(page)
        left[hash(name)] -= 1
        if not left[hash(name)]:
            document = begun.pop(name)
            document.pages.sort(key=lambda page: page.order)
            yield document


def joined(document: Document, mark: Callable[[str], str]) -> tuple[str, list[tuple[int, int, int]]]:
    """Return a document's text, and for each page where it begins and ends in it and its number."""
    text, spans = "", []
    for number, page in enumerate(document.pages, start=1):
        said = page.row["text"]
        if said is None:
            said = mark(f"{_title(page, number)} failed: {page.row['error_type']} at {page.row['error_stage']}")
        before = _BETWEEN if text else ""
        start = len(text) + len(before)
        text += before + said.strip("\n")
        spans.append((start, len(text), page.number or number))
    return text, spans


def _named(run: Run, choice: Choice, columns: list[str]) -> Iterator[tuple[str, Page]]:
    """Yield every chosen row as a page, with its document's name."""
    whole = _name_of_input(run)
    for row in run.chosen(choice, columns):
        id = str(row["id"])
        page = split_page_uri(id)
        if page is not None:
            yield page.file, Page(name="", number=page.page, row=row)
        else:
            folder, _, name = id.rpartition("/")
            yield folder or whole, Page(name=name, number=None, row=row)


def _name_of_input(run: Run) -> str:
    """Return what pages at the top of the input are a document of: the input's last name."""
    first = str(next(iter(run.settings.get("input", ())), "document"))
    return first.rstrip("/*").rsplit("/", 1)[-1] or "document"


def _stem(name: str) -> str:
    return name[:-4] if name.lower().endswith(".pdf") and len(name) > 4 else name


def _refuse_same_files(run: Run, choice: Choice) -> None:
    def names() -> Iterator[tuple[str, str]]:
        last = None
        for name, _ in _named(run, choice, ["id"]):
            if name != last:
                yield safe_name(_stem(name)), name
            last = name

    found = find_collision(names)
    if found is not None:
        raise Refused(
            f"documents must differ in their names, {' and '.join(map(printable, found.ids))} would be one file: "
            "rename one of them, or export to dolma"
        )


def _title(page: Page, number: int) -> str:
    return f"page {page.number or number}" + (f" ({page.name})" if page.name else "")


def _markdown_mark(text: str) -> str:
    return f"<!-- {text.replace('--', '- -').replace('>', '&gt;')} -->"


_marked: dict[str, Callable[[str], str]] = {"markdown": _markdown_mark, "text": lambda text: f"[{text}]"}


def _dolma(run: Run, document: Document) -> dict[str, Any]:
    text, spans = joined(document, _marked["text"])
    rows = [page.row for page in document.pages]
    failed = [span[2] for span, row in zip(spans, rows, strict=True) if row["status"] == "error"]
    cut = [span[2] for span, row in zip(spans, rows, strict=True) if row["finish_reason"] in ("length", "repetition")]
    when = run.begun.strftime("%Y-%m-%dT%H:%M:%S.000Z")
    return {
        "id": hashlib.sha1(f"{run.description['run']} {document.name}".encode()).hexdigest(),
        "text": text,
        "source": "llava-batch",
        "added": when,
        "created": when,
        "metadata": {
            "Source-File": document.name,
            "model": run.model,
            "pdf-total-pages": len(rows),
            "failed-pages": failed,
            "cut-pages": cut,
            "total-input-tokens": sum(row["num_prompt_tokens"] or 0 for row in rows),
            "total-output-tokens": sum(row["num_generated_tokens"] or 0 for row in rows),
        },
        "attributes": {"pdf_page_numbers": [list(span) for span in spans]},
    }


def _natural(name: str) -> tuple[tuple[int, int, str], ...]:
    parts = re.findall(r"[0-9]{1,18}|[^0-9]+|[0-9]+", name)
    return tuple((0, int(part), part) if part.isascii() and part.isdigit() else (1, 0, part) for part in parts)
