"""Image files: every file is a row, every page of a PDF another one.

Their folder's name and the text in a `.txt` file beside them are columns, read where they are used.
"""

import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from tempfile import NamedTemporaryFile

import pyarrow as pa

from pipeline.preprocess.page_renderer import PageRenderer
from pipeline.preprocess.pdf import INSTALL, SUFFIX, can_read_pdfs, is_pdf, page_uri
from pipeline.sources.columns import Columns
from pipeline.sources.convention import CONVENTION, Convention
from pipeline.sources.source import FileRows, RowRange, Rows
from pipeline.storage import filesystem as fs
from pipeline.storage import local_files
from pipeline.storage.filesystem import FileInfo
from schemas.errors import Failure, Refused, RowError
from schemas.wording import one_line

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".avif", ".jp2", ".j2k", ".tga", ".ico"),
)
FILE_SUFFIXES = (*IMAGE_SUFFIXES, SUFFIX)
LABEL, TEXT = "label", "text"  # what files have for columns: their folder's name, and the text beside them
_SCHEMA = pa.schema([(LABEL, pa.string()), (TEXT, pa.string())])
_LONGEST_TEXT = 2**20  # bytes
_SMALL_PDF = 16 * 2**20  # bytes; read at once, and many at the same time
_COUNTED_AT_ONCE = 16  # they wait for storage, not for the CPU
_COUNTED_AHEAD = 256  # before it is looked whether --limit has its rows
_COUNT_SECONDS = 30.0  # for the pages of one PDF


@dataclass(frozen=True, slots=True)
class ImageFiles:
    """Files that are images or PDFs."""

    name: str = "images"
    is_table: bool = False
    convention: Convention = CONVENTION

    def list(self, files: Sequence[FileInfo], limit: int | None) -> list[FileRows]:
        """Count a row for each image and for each page of a PDF; a PDF that cannot be opened is one, which says why."""
        counts, schema = _count_rows(files, limit), _SCHEMA
        return [
            FileRows(url=file.url, num_rows=count, schema=schema) for file, count in zip(files, counts, strict=False)
        ]

    def read(self, row_ranges: Sequence[RowRange], columns: Columns) -> Iterator[Rows]:
        """Yield the names of the images, which are fetched one by one."""
        ids = [page for one in row_ranges for page in _pages(one, one.name)]
        urls = [page for one in row_ranges for page in _pages(one, one.url)]
        files = [(one.name, one.url) for one in row_ranges for _ in range(one.num_rows)]
        failures: dict[int, Failure] = {}
        wanted: dict[str, list[str | None]] = {}
        if LABEL in columns.used():
            wanted[LABEL] = [_label(name) for name, _ in files]
        if TEXT in columns.used():
            with ThreadPoolExecutor(_COUNTED_AT_ONCE) as pool:
                texts = list(pool.map(_text_beside, [url for _, url in files]))
            failures = {row: text for row, text in enumerate(texts) if isinstance(text, Failure)}
            wanted[TEXT] = [None if isinstance(text, Failure) else text for text in texts]
        yield Rows(
            row_range=RowRange(url="", name="", start=0, num_rows=len(ids)),
            batch=pa.RecordBatch.from_pydict({name: pa.array(own, pa.string()) for name, own in wanted.items()}),
            failures=failures,
            ids=pa.array(ids, pa.string()),
            images=pa.array(urls, pa.string()),
        )

    def read_ids(self, row_range: RowRange, columns: Columns) -> Iterator[Rows]:
        """Yield the same: names are all there is."""
        return self.read([row_range], columns)


def _label(name: str) -> str | None:
    """Return the name of the folder that a file is in, below the input."""
    return name.rsplit("/", 2)[-2] if "/" in name else None


def _text_beside(url: str) -> str | None | Failure:
    """Return the text of the file of the same name that ends in .txt, None where there is none."""
    path = f"{url.rpartition('.')[0]}.txt"
    try:
        if (here := fs.local_path(path)) is not None and local_files.is_of_the_system(here):
            message = f"{path} must be a file of text, it is a link to one of the system"
            return Failure(stage="read", type="NotAllowed", message=message)
        data = fs.read_bytes(path, _LONGEST_TEXT + 1)
        if len(data) > _LONGEST_TEXT:
            message = f"{path} must have at most {_LONGEST_TEXT:,} bytes, it has more"
            return Failure(stage="read", type="TooLarge", message=message)
        return data.decode("utf-8-sig").strip()
    except FileNotFoundError:
        return None
    except UnicodeDecodeError as error:
        return Failure(stage="read", type="InvalidText", message=f"{path} must be UTF-8 text: {error}")
    except OSError as error:
        return Failure(stage="read", type="ReadFailed", message=f"{path} could not be read: {one_line(error)}")


def _pages(row_range: RowRange, file: str) -> list[str]:
    """Return the file for its row, or each page of a PDF in the range."""
    first = row_range.start + 1
    return [page_uri(file, page) for page in range(first, first + row_range.num_rows)] if is_pdf(file) else [file]


def _count_rows(files: Sequence[FileInfo], limit: int | None) -> list[int]:
    """Return the rows of all files, or of the first ones that have `limit` together."""
    pdfs = [file.url for file in files if is_pdf(file.url)]
    if not pdfs:
        return [1] * len(files)
    if not can_read_pdfs():
        raise Refused(f"--input {pdfs[0]}: {INSTALL}")
    counter = PageRenderer(max_pixels=0, max_aspect=1, seconds=_COUNT_SECONDS)  # which draws nothing
    rows: list[int] = []
    with ThreadPoolExecutor(_COUNTED_AT_ONCE) as pool:
        for start in range(0, len(files), _COUNTED_AHEAD):
            rows += pool.map(partial(_rows_of, counter), files[start : start + _COUNTED_AHEAD])
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
