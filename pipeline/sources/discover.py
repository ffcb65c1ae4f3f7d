"""Listing: the files that one `--input` names, their one format, and how many rows they state that they have."""

import os
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import takewhile
from tempfile import NamedTemporaryFile
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.preprocess.page_renderer import PageRenderer
from pipeline.preprocess.pdf import INSTALL, SUFFIX, can_read_pdfs, is_pdf
from pipeline.sources.finding import Found, find_files
from pipeline.storage import filesystem as fs
from pipeline.storage import local_files
from pipeline.storage.filesystem import FileInfo
from schemas.errors import Refused, RowError
from schemas.wording import one_line, printable

Format = Literal["parquet", "images"]
PARQUET_SUFFIXES = (".parquet", ".parq", ".pq")
IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".avif", ".jp2", ".j2k", ".tga", ".ico"),
)
FILE_SUFFIXES = (*IMAGE_SUFFIXES, SUFFIX)
_SMALL_PDF = 16 * 2**20  # bytes; read at once, and many at the same time
_FOOTERS_AT_ONCE = 16  # they wait for storage, not for the CPU
_COUNT_SECONDS = 30.0  # for the pages of one PDF
_FOOTERS_AHEAD = 256  # read before it is looked whether --limit has its rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Footer:
    """What a Parquet file states of itself."""

    url: str
    num_rows: int
    schema: pa.Schema


def find_input(url: str, output: str | None = None) -> Found:
    """The Parquet, image and PDF files of a folder, a glob or a single path; raises Refused where there are none.

    What a job writes is not its input: its `output` and other folders of runs are left out where they are below it.
    """
    try:
        if output is not None:
            _check_apart(url, output)
        found = find_files(url, PARQUET_SUFFIXES + FILE_SUFFIXES, output)
        there = bool(found.files) or fs.exists(url)
    except fs.UnsupportedScheme as error:
        raise Refused(f"--input {url}: {error}") from error
    except Refused:
        raise
    except (OSError, ValueError) as error:  # ValueError: what is no path at all, with a null character in it
        raise Refused(f"--input {url} cannot be listed: {one_line(error)}") from error
    wanted = []
    for file in found.files:
        if _is_bookkeeping(fs.spelled(file.url)[len(fs.spelled(found.root)) :]):
            found.left_out.add("that the writer of a table keeps for itself", file.url.rsplit("/", 1)[1])
        else:
            wanted.append(file)
    if not wanted:
        what = "it holds" if there else "there is nothing of that name, so"
        suffixes = ", ".join(PARQUET_SUFFIXES + FILE_SUFFIXES)
        left_out = f"; left out: {found.left_out}" if str(found.left_out) else ""
        raise Refused(
            f"--input {url}: {what} no Parquet, image or PDF file; looked for names ending in {suffixes}{left_out}"
        )
    return replace(found, files=tuple(wanted))


def _check_apart(url: str, output: str) -> None:
    """Refuse to read what the job itself writes."""
    if fs.is_local(url) != fs.is_local(output):
        return
    folder, place = (_real(one) for one in (output, url))
    if place == folder:
        raise Refused(f"--output {output} must be another folder than --input {url}, as one named for the answers")
    if any(f"{place}/".startswith(f"{fs.join(folder, name)}/") for name in _WRITTEN):
        raise Refused(f"--input {url} must not be what this job writes, it is in --output {output}")


_WRITTEN = ("answers", "units", "attempts", "retry", "markers", "input.parquet")


def _real(url: str) -> str:
    """The one spelling of a place, on this machine without links."""
    path = fs.local_path(url)
    return fs.absolute(url) if path is None else os.path.realpath(path)


def format_of(found: Sequence[Found]) -> Format:
    """The one format of all inputs; ValueError where there are two."""
    first: dict[Format, str] = {}
    for file in (file for one in found for file in one.files):
        first.setdefault("parquet" if _is_parquet(file.url) else "images", file.url)
    if len(first) > 1:
        raise Refused(
            f"--input must be Parquet files or image files, not both, got {printable(first['parquet'])} and "
            f"{printable(first['images'])}; "
            "name one kind by a glob, as in --input 'folder/*.parquet'"
        )
    return next(iter(first))


def common_folder(roots: Sequence[str]) -> str:
    """What all roots start with, up to a slash: names below it differ where files of several inputs do."""
    together = takewhile(lambda parts: len(set(parts)) == 1, zip(*(root.split("/") for root in roots), strict=False))
    return "".join(f"{parts[0]}/" for parts in together)


def read_footers(urls: Sequence[str], limit: int | None) -> list[Footer]:
    """The footers of all files, or only of the first ones where those have `limit` rows together."""
    footers: list[Footer] = []
    with ThreadPoolExecutor(_FOOTERS_AT_ONCE) as pool:
        for start in range(0, len(urls), _FOOTERS_AHEAD):
            footers += pool.map(_read_footer, urls[start : start + _FOOTERS_AHEAD])
            if limit is not None and sum(footer.num_rows for footer in footers) >= limit:
                break
    return footers


def count_rows(files: Sequence[FileInfo], limit: int | None) -> list[int]:
    """A row for each image and for each page of a PDF, of all files or of the first ones that have `limit` together.

    A PDF that cannot be opened is one row, which will say why. Raises ValueError where PDFs cannot be read here.
    """
    pdfs = [file.url for file in files if is_pdf(file.url)]
    if not pdfs:
        return [1] * len(files)
    if not can_read_pdfs():
        raise Refused(f"--input {pdfs[0]}: {INSTALL}")
    counter = PageRenderer(max_pixels=0, max_aspect=1, seconds=_COUNT_SECONDS)  # which draws nothing
    rows: list[int] = []
    with ThreadPoolExecutor(_FOOTERS_AT_ONCE) as pool:
        for start in range(0, len(files), _FOOTERS_AHEAD):
            rows += pool.map(partial(_rows_of, counter), files[start : start + _FOOTERS_AHEAD])
            if limit is not None and sum(rows) >= limit:
                break
    return rows


def _rows_of(counter: PageRenderer, file: FileInfo) -> int:
    if not is_pdf(file.url):
        return 1
    try:
        if (path := fs.local_path(file.url)) is not None:
            local_files.open_regular(path).close()  # a pipe would be waited for
            return max(1, counter.count(path))
        if file.size <= _SMALL_PDF:
            return max(1, counter.count(fs.read_bytes(file.url)))
        with fs.open_url(file.url) as source, NamedTemporaryFile(suffix=SUFFIX) as copy:
            shutil.copyfileobj(source, copy)
            copy.flush()
            return max(1, counter.count(copy.name))
    except (OSError, RowError):
        return 1


def _read_footer(url: str) -> Footer:
    try:
        with fs.open_url(url) as file, pq.ParquetFile(file) as parquet:
            return Footer(url=url, num_rows=parquet.metadata.num_rows, schema=parquet.schema_arrow)
    except (OSError, pa.ArrowException) as error:
        why = one_line(error)
        raise Refused(f"{printable(url)} must be a Parquet file, its footer cannot be read: {why}") from error


def _is_bookkeeping(below: str) -> bool:
    """Parquet in `_temporary/`, `_delta_log/` and the like is what the writer of a folder keeps for itself."""
    return _is_parquet(below) and any(part.startswith("_") for part in below.split("/")[:-1])


def _is_parquet(url: str) -> bool:
    return url.lower().endswith(PARQUET_SUFFIXES)
