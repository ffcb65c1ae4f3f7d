"""PDFs: how many pages one has, and a page as a picture. Pages are numbered from 1, as in `file.pdf#page=3`."""

import hashlib
import math
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import IO, TYPE_CHECKING

from PIL import Image

from schemas.errors import RowError
from schemas.packages import install_line

if TYPE_CHECKING:
    from pypdfium2 import PdfDocument

SUFFIX = ".pdf"
INSTALL = f"PDFs are read by pypdfium2, which is not installed: {install_line('pdf')}"
_PAGE = re.compile(r"(.+\.pdf)#page=([1-9][0-9]{0,8})", re.DOTALL | re.IGNORECASE)
_POINTS_AN_INCH = 72
_PASSWORD, _SECURITY = 4, 5  # error codes of PDFium
_PDFIUM = threading.Lock()  # it must not run in two threads at once


@dataclass(frozen=True, slots=True, kw_only=True)
class PageUri:
    """Return which page of which file a URI names."""

    file: str
    page: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PdfPage:
    """A page still to be rendered: the bytes of its file, its number, and the pixels for an inch of paper."""

    data: bytes
    page: int
    dpi: int

    def sha256(self) -> str:
        """Return the hash of the file's bytes, with `#page=N` behind them, hex."""
        return hashlib.sha256(self.data + page_uri("", self.page).encode()).hexdigest()


def page_uri(file: str, page: int) -> str:
    """Return the name of one page."""
    return f"{file}#page={page}"


def split_page_uri(uri: str) -> PageUri | None:
    """Return the file and the page of a URI that names a page; None for any other."""
    found = _PAGE.fullmatch(uri)
    return PageUri(file=found[1], page=int(found[2])) if found else None


def is_pdf(url: str) -> bool:
    """Return whether a file is one by its name."""
    return url.lower().endswith(SUFFIX)


def can_read_pdfs() -> bool:
    """Return whether the package that does it is installed."""
    return find_spec("pypdfium2") is not None


def count_pages(source: bytes | IO[bytes]) -> int:
    """Return the pages of a PDF, without rendering any; raises RowError where it cannot be opened."""
    with _opened(source) as document:
        return len(document)


def render_page(
    wanted: PdfPage, max_pixels: int, max_aspect: float = math.inf, room: Callable[[int], None] = lambda _: None
) -> Image.Image:
    """Return the page on white paper, in RGB, annotations and filled-in fields included; raises RowError.

    `room` is told the page's pixels before it is drawn.
    """
    with _opened(wanted.data) as document:
        if wanted.page > len(document):
            message = f"the PDF must have a page {wanted.page}, it has {len(document)}: was the file replaced?"
            raise RowError("decode", "PageMissing", message)
        document.init_forms()
        page = document[wanted.page - 1]
        scale = wanted.dpi / _POINTS_AN_INCH
        width, height = (max(1, math.ceil(side * scale)) for side in page.get_size())
        if width * height > max_pixels:
            size = f"{width}x{height} pixels at {wanted.dpi} dpi"
            message = f"the page has {size}, the limit is {max_pixels} in all: lower --pdf-dpi"
            raise RowError("decode", "TooManyPixels", message)
        if max(width, height) > max_aspect * min(width, height):
            message = f"the page is {width}x{height} pixels, one side must be at most {max_aspect:g} times the other"
            raise RowError("decode", "AspectTooLarge", f"{message} (--max-image-aspect)")
        room(width * height)
        image: Image.Image = page.render(scale=scale).to_pil().convert("RGB")
        return image


@contextmanager
def _opened(source: bytes | IO[bytes]) -> "Iterator[PdfDocument]":
    if not can_read_pdfs():
        raise RowError("decode", "NoPdfReader", INSTALL)
    from pypdfium2 import PdfDocument, PdfiumError  # an extra

    with _PDFIUM:
        try:
            with PdfDocument(source) as document:
                yield document
        except PdfiumError as error:
            if error.err_code in (_PASSWORD, _SECURITY):
                message = "the PDF is encrypted and asks for a password: store it without one"
                raise RowError("decode", "EncryptedPdf", message) from error
            raise RowError("decode", "BrokenPdf", f"the PDF cannot be read: {error}") from error
