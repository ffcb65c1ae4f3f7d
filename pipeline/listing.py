"""Listing: the files that one `--input` names, their one format, and how many rows they state that they have."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import takewhile
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.preprocess.pdf import INSTALL, SUFFIX, can_read_pdfs, count_pages, is_pdf
from pipeline.storage import FileInfo
from schemas.errors import Refused, RowError
from schemas.wording import one_line

Format = Literal["parquet", "images"]
PARQUET_SUFFIXES = (".parquet", ".parq", ".pq")
IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".avif", ".jp2", ".j2k", ".tga", ".ico"),
)
FILE_SUFFIXES = (*IMAGE_SUFFIXES, SUFFIX)
_SMALL_PDF = 16 * 2**20  # bytes; read at once, and many at the same time
_FOOTERS_AT_ONCE = 16  # they wait for storage, not for the CPU
_FOOTERS_AHEAD = 256  # read before it is looked whether --limit has its rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What one `--input` names: its files, and the folder that their names are relative to."""

    root: str
    files: tuple[FileInfo, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Footer:
    """What a Parquet file states of itself."""

    url: str
    num_rows: int
    schema: pa.Schema


def find_input(url: str) -> Found:
    """The Parquet, image and PDF files of a folder, a glob or a single path. Raises ValueError where there are none."""
    try:
        full = storage.absolute(url)
        files = storage.list_files(url, PARQUET_SUFFIXES + FILE_SUFFIXES)
        there = bool(files) or storage.exists(url)
    except OSError as error:
        raise Refused(f"--input {url} cannot be listed: {one_line(error)}") from error
    root = _root_of(full, files)
    wanted = tuple(file for file in files if not _is_bookkeeping(file.url[len(root) :]))
    if not wanted:
        what = "it holds" if there else "there is nothing of that name, so"
        suffixes = ", ".join(PARQUET_SUFFIXES + FILE_SUFFIXES)
        raise Refused(f"--input {url}: {what} no Parquet, image or PDF file; looked for names ending in {suffixes}")
    return Found(root=root, files=wanted)


def format_of(found: Sequence[Found]) -> Format:
    """The one format of all inputs; ValueError where there are two."""
    first: dict[Format, str] = {}
    for file in (file for one in found for file in one.files):
        first.setdefault("parquet" if _is_parquet(file.url) else "images", file.url)
    if len(first) > 1:
        raise Refused(
            f"--input must be Parquet files or image files, not both, got {first['parquet']} and {first['images']}; "
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
    rows: list[int] = []
    with ThreadPoolExecutor(_FOOTERS_AT_ONCE) as pool:
        for start in range(0, len(files), _FOOTERS_AHEAD):
            rows += pool.map(_rows_of, files[start : start + _FOOTERS_AHEAD])
            if limit is not None and sum(rows) >= limit:
                break
    return rows


def _rows_of(file: FileInfo) -> int:
    if not is_pdf(file.url):
        return 1
    try:
        if file.size <= _SMALL_PDF:
            return max(1, count_pages(storage.read_bytes(file.url)))
        with storage.open_url(file.url) as source:
            return max(1, count_pages(source))
    except (OSError, RowError):
        return 1


def _read_footer(url: str) -> Footer:
    try:
        with storage.open_url(url) as file, pq.ParquetFile(file) as parquet:
            return Footer(url=url, num_rows=parquet.metadata.num_rows, schema=parquet.schema_arrow)
    except (OSError, pa.ArrowException) as error:
        why = one_line(error)
        raise Refused(f"{url} must be a Parquet file, its footer cannot be read: {why}") from error


def _root_of(full: str, files: Sequence[FileInfo]) -> str:
    """The folder named, the folder of the file named, or the part of a glob before its first folder with a `*`."""
    if files and files[0].url == full:
        return full.rsplit("/", 1)[0]
    if not storage.has_glob(full) or (files and files[0].url.startswith(f"{full}/")):
        return full
    return "/".join(takewhile(lambda part: not storage.has_glob(part), full.split("/")))


def _is_bookkeeping(below: str) -> bool:
    """Parquet in `_temporary/`, `_delta_log/` and the like is what the writer of a folder keeps for itself."""
    return _is_parquet(below) and any(part.startswith("_") for part in below.split("/")[:-1])


def _is_parquet(url: str) -> bool:
    return url.lower().endswith(PARQUET_SUFFIXES)
