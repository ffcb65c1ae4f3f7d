"""Fetch: the bytes of one image, or of the PDF that it is a page of, under a limit."""

import base64
import binascii
import os
import socket
import threading
from collections.abc import Callable, Sequence
from functools import lru_cache
from urllib.parse import unquote_to_bytes

from pipeline.preprocess.pdf import PdfPage, split_page_uri
from pipeline.sources.arrow_types import looks_like_base64
from pipeline.sources.web import urls as web_urls
from pipeline.sources.web.client import WebClient
from pipeline.sources.web.limits import WebLimits, web_limits
from pipeline.storage import filesystem as fs
from pipeline.storage.backoff import WAITS_S, is_transient
from pipeline.storage.local_files import is_of_the_system
from schemas.errors import RowError
from schemas.job import JobSettings
from schemas.request import ImageRef
from schemas.wording import shortened

SCHEMES = ("file", "s3", "s3a", "gs", "gcs", "az", "abfs", "hf", "data")
_NAMED = (*SCHEMES[1:], *web_urls.SCHEMES)
_SHOWN = 200  # characters of a URI in a message: a data: URI holds a whole image
_LONGEST = 8192  # characters of a path: no system and no store knows longer ones
_DOCUMENTS = 2  # kept at once: pages of one file follow each other
_SMALL = 4 * 2**20  # bytes for which there is always room; few images have more


def fetcher_of(settings: JobSettings) -> "ImageFetcher":
    """Return what fetches the images of a job's rows, under the job's limits."""
    return ImageFetcher(
        max_bytes=settings.max_image_bytes,
        pdf_dpi=settings.pdf_dpi,
        roots=settings.allow_root,
        web=WebClient(web_limits(settings)),
    )


class ImageFetcher:
    """Fetches images for many threads; a PDF once for its pages, and PDFs one after the other.

    `roots` are the only folders or prefixes that rows of tables may name images in, where any are given; `web` asks
    for URLs.
    """

    def __init__(
        self, *, max_bytes: int, pdf_dpi: int, roots: Sequence[str] = (), web: WebClient | None = None
    ) -> None:
        self._max_bytes = max_bytes
        self._pdf_dpi = pdf_dpi
        self._roots = [_real(root) for root in roots]
        self._web = web or WebClient(WebLimits())
        self._document = lru_cache(_DOCUMENTS)(lambda file: self._bytes_of(file, max_bytes, is_image=False))
        self._documents = threading.Lock()

    def __call__(self, image: ImageRef, room: Callable[[int], None] = lambda _: None) -> bytes | memoryview | PdfPage:
        """Return the encoded image or the page still to be rendered; raises RowError where there is none to be had.

        `room` waits until so many bytes may be held, and is asked before they are.
        """
        if image.data is not None:
            return image.data
        if image.uri is None:
            raise RowError("read", "NoImage", "the row's image is null: give it bytes or a URI, or leave the row out")
        if looks_like_base64(image.uri):
            shown = f"{image.uri[:20]}... of {len(image.uri):,} letters"
            message = f"base64 must say what it is: prefix data:image/...;base64, as in data:image/jpeg;base64,{shown}"
            raise RowError("fetch", "BareBase64", message)
        page = split_page_uri(image.uri)
        file = page.file if page else image.uri
        if image.table is not None:
            file = self._allowed(file, image.table)
        if page is None:
            return self._fetch(file, room)
        room(self._max_bytes)
        with self._documents:
            return PdfPage(data=self._document(file), page=page.page, dpi=self._pdf_dpi)

    def _allowed(self, uri: str, table: str) -> str:
        """Return what a row's `uri` leads to, links on this machine resolved; raises RowError where it may not."""
        if is_web(uri):
            return self._allowed_on_the_web(uri)
        is_local = fs.is_local(uri)
        if _is_data(uri) or len(uri) > _LONGEST or fs.scheme_of(uri) not in SCHEMES:
            return uri  # it needs no leave, or whoever fetches it says why it cannot be
        try:
            real = _real(uri) if is_local or self._roots else uri
        except (OSError, ValueError) as error:
            raise _failed(uri, str(error)) from error
        self._check_roots(uri, real)
        if is_local and not self._roots and not fs.is_local(table):
            advice = "--allow-root DIR lets rows read below DIR"
            raise _not_allowed(uri, f"is a local file, which rows of a table in a store cannot name: {advice}")
        if (path := fs.local_path(real)) is not None and is_of_the_system(path):
            raise _not_allowed(uri, "is a file of the system and no image")
        return real if is_local else uri

    def _allowed_on_the_web(self, uri: str) -> str:
        """The URL of a row where --allow-root leaves it in; where its redirects may lead the web's own limits say."""
        if self._roots:
            self._check_roots(uri, web_urls.place_of(web_urls.parse_url(uri)))
        return uri

    def _check_roots(self, uri: str, real: str) -> None:
        if self._roots and not any(_is_below(real, root) for root in self._roots):
            advice = "add its folder as another --allow-root if rows may read it"
            raise _not_allowed(uri, f"is outside of what --allow-root names: {advice}")

    def _bytes_of(self, uri: str, max_bytes: int, *, is_image: bool = True) -> bytes:
        if not is_web(uri):
            return fetch(uri, max_bytes)
        _check_length(uri)
        return _filled(uri, self._web.image(uri, max_bytes) if is_image else self._web.fetch(uri, max_bytes).body)

    def _fetch(self, uri: str, room: Callable[[int], None]) -> bytes:
        """Return the bytes of an image, those of a large one once there is room for the largest."""
        least = min(_SMALL, self._max_bytes)
        room(least)
        try:
            return self._bytes_of(uri, least)
        except RowError as error:
            if error.failure.type != "TooLarge" or least == self._max_bytes:
                raise
        room(self._max_bytes)
        return self._bytes_of(uri, self._max_bytes)


def fetch(uri: str, max_bytes: int, waits_s: Sequence[float] = WAITS_S) -> bytes:
    """Return the bytes that `uri` names: a path, an object of a store, or a data: URI. Raises RowError with what to do.

    What may pass (a timeout, a 429, a 5xx) is tried again after each of `waits_s`.
    """
    is_data = _is_data(uri)
    if not is_data:
        _check_length(uri)
    scheme = "data" if is_data else fs.scheme_of(uri)
    if scheme not in SCHEMES:
        raise RowError(
            "fetch",
            "UnsupportedScheme",
            f"images are not fetched from {scheme}://, only from paths, {', '.join(_NAMED)}: "
            f"copy the image there first, got {_short(uri)}",
        )
    data = _decode(uri, max_bytes) if is_data else _read(uri, max_bytes, waits_s)
    if len(data) > max_bytes:
        raise _too_large(uri, max_bytes)
    return _filled(uri, data)


def is_web(uri: str) -> bool:
    """Return whether a server of the web is asked for it."""
    return uri[:5].lower() == "http:" or uri[:6].lower() == "https:"


def _check_length(uri: str) -> None:
    if len(uri) > _LONGEST:
        raise _failed(uri, f"a path must have at most {_LONGEST:,} characters, it has {len(uri):,}")


def _filled(uri: str, data: bytes) -> bytes:
    if not data:
        raise RowError("fetch", "EmptyFile", f"{_short(uri)} has no bytes: write the image again")
    return data


def _read(uri: str, max_bytes: int, waits_s: Sequence[float]) -> bytes:
    """Return at most one byte more than the limit, which tells that there is more."""
    try:
        return fs.read_bytes(uri, max_bytes + 1, waits_s)
    except (FileNotFoundError, NotADirectoryError) as error:
        on = "" if fs.local_path(uri) is None else f" on {socket.gethostname()}"  # others may see other disks
        raise RowError("fetch", "FileNotFound", f"{_short(uri)} is not there{on}: check the path") from error
    except PermissionError as error:
        message = f"{_short(uri)} may not be read ({error}): check its permissions and the keys in the environment"
        raise RowError("fetch", "PermissionDenied", message) from error
    except fs.UnsupportedScheme as error:
        raise RowError("fetch", "UnsupportedScheme", _short(str(error))) from error
    except (OSError, ValueError) as error:  # ValueError: what is no path at all, with a null character in it
        tried = f" in {len(waits_s) + 1} tries" if is_transient(error) else ""
        raise _failed(uri, str(error), tried) from error


def _decode(uri: str, max_bytes: int) -> bytes:
    """Return the bytes of `data:[type][;base64],...`."""
    header, comma, payload = uri.partition(",")
    if not comma:
        raise RowError("fetch", "FetchFailed", f"a data: URI must have a comma before its data, got {_short(uri)}")
    is_base64 = header.lower().endswith(";base64")
    if len(payload) // 4 * 3 - 2 > max_bytes and is_base64:
        raise _too_large(uri, max_bytes)
    if not is_base64:
        return unquote_to_bytes(payload)
    try:
        return base64.b64decode(unquote_to_bytes(payload), validate=True)
    except binascii.Error as error:
        raise RowError("fetch", "FetchFailed", f"{_short(uri)} must be valid base64: {error}") from error


def _too_large(uri: str, max_bytes: int) -> RowError:
    message = f"{_short(uri)} must have at most {max_bytes} bytes: raise --max-image-bytes or shrink the image"
    return RowError("fetch", "TooLarge", message)


def _failed(uri: str, why: str, tried: str = "") -> RowError:
    message = f"{_short(uri)} could not be read{tried} ({_short(why)}): retry, or check the path"
    return RowError("fetch", "FetchFailed", message)


def _not_allowed(uri: str, why: str) -> RowError:
    return RowError("fetch", "NotAllowed", f"{_short(uri)} {why}")


def _is_data(uri: str) -> bool:
    return uri[:5].lower() == "data:"


def _real(url: str) -> str:
    """Return the one spelling of a URL: on this machine without links, in a store without the names a client
    changes."""
    if is_web(url):
        return web_urls.place_of(web_urls.parse_url(url))
    path = fs.local_path(url)
    return fs.absolute(url) if path is None else fs.as_url(os.path.realpath(path))


def _is_below(real: str, root: str) -> bool:
    """Return whether a URL is the root or below it; `..` is a name like any other in a store, and here leads
    nowhere."""
    inside = real == root or real.startswith(root if root.endswith("/") else f"{root}/")
    return inside and ".." not in real.split("/")


def _short(text: str) -> str:
    return shortened(text, _SHOWN)
