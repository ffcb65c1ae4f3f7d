"""Responses: what a server's answer means for a row. Its own words are sniffed, bounded and never believed."""

import re
import zlib
from collections.abc import Iterable, Mapping
from email.utils import parsedate_to_datetime

from pipeline.preprocess.kinds import kind_of
from schemas.errors import RowError
from schemas.wording import printable, shortened

TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504, 507, 509, 520, 521, 522, 523, 524, 529})
REDIRECTS = frozenset({301, 302, 303, 307, 308})
_NO_AI = frozenset({"noai", "noimageai"})
_OUT = 2**18  # bytes taken from a compressed body at once
_GZIP = b"\x1f\x8b"
_SHOWN = 60  # characters of a header in a message
# What is no image whatever its name: the rest is for the decoder to say.
_OTHERS = frozenset(
    {"HTML", "XML", "JSON", "SVG", "text", "a PDF", "PostScript", "gzip", "a ZIP archive", "bzip2", "xz", "zstd"}
    | {"a 7z archive", "Parquet", "a program", "a pointer of Git LFS, not its file", "JPEG XL", "a Photoshop file"}
)
_PLAIN_PNM = re.compile(rb"P[1-3]\s")  # images that are text


class Transient(Exception):
    """A failure that may pass: what it is if it does not, and the seconds that the server asks to be left alone."""

    def __init__(self, type: str, why: str, after_s: float | None = None) -> None:
        super().__init__(why)
        self.type, self.why, self.after_s = type, why, after_s


def check_status(shown: str, status: int, reason: str, retry_after: str | None, now_s: float) -> None:
    """Raise RowError or Transient for a status that comes with no image; `now_s` is the time of day."""
    if status in (200, 203):
        return
    said = f"HTTP {status} {printable(shortened(reason, _SHOWN))}".rstrip()
    if status in TRANSIENT:
        type = {429: "RateLimited", 408: "TimedOut"}.get(status, "ServerError")
        raise Transient(type, said, _seconds_of(retry_after, now_s))
    if status >= 500:
        raise RowError("fetch", "ServerError", f"{shown} could not be fetched ({said}): retry the row later")
    if status == 404:
        raise RowError("fetch", "NotFound", f"{shown} is not there ({said})")
    if status == 410:
        raise RowError("fetch", "Gone", f"{shown} is gone for good ({said})")
    if status in (401, 402, 403, 407, 451):
        raise RowError("fetch", "Forbidden", f"{shown} may not be read ({said})")
    raise RowError("fetch", "BadStatus", f"{shown} could not be fetched ({said}): an image comes with status 200")


def check_robots_tag(shown: str, values: Iterable[str], user_agent: str) -> None:
    """Raise RowError where `X-Robots-Tag` says that no machine may learn from or read the image.

    A directive for one agent, as in `somebot: noai`, is ours where that is the name we ask under.
    """
    own = user_agent.partition("/")[0].strip().lower()
    for directive in ",".join(values).lower().split(","):
        agent, _, name = directive.rpartition(":")
        if name.strip() in _NO_AI and agent.strip() in ("", own):
            message = f"{shown} says X-Robots-Tag: {name.strip()}; --ignore-robots-tag reads it all the same"
            raise RowError("fetch", "NoAI", message)


def decoded(shown: str, body: bytes, encoding: str, max_bytes: int) -> bytes:
    """Return a body without its Content-Encoding, which we did not ask for; raises RowError before it is too large."""
    names = [name.strip() for name in encoding.lower().split(",") if name.strip() not in ("", "identity")]
    if not names:
        return body
    window = {"gzip": 31, "x-gzip": 31, "deflate": 47}.get(names[0])
    if len(names) > 1 or window is None:
        told = printable(shortened(encoding, _SHOWN))
        raise RowError("fetch", "BadEncoding", f"{shown} has Content-Encoding {told}; only gzip and deflate are read")
    try:
        return _inflated(shown, body, window, max_bytes)
    except zlib.error as error:
        raise RowError("fetch", "BadEncoding", f"{shown} must be one {names[0]} as it says, it is not") from error


def _inflated(shown: str, body: bytes, window: int, max_bytes: int) -> bytes:
    inflate = zlib.decompressobj(window)
    parts, size, rest = list[bytes](), 0, body
    while not inflate.eof:
        part = inflate.decompress(rest, _OUT)
        rest = inflate.unconsumed_tail
        if not part and not rest:
            raise zlib.error("it ends too early")
        parts.append(part)
        size += len(part)
        if size > max_bytes:
            raise too_large(shown, max_bytes)
    if inflate.unused_data.startswith(_GZIP):  # half of an image may look like one
        raise zlib.error("something follows")
    return b"".join(parts)


def check_is_image(shown: str, body: bytes, content_type: str) -> None:
    """Raise RowError where the bytes are known to be something else, a page that says `not found` for one."""
    kind = kind_of(body)
    if kind not in _OTHERS or _PLAIN_PNM.match(body):
        return
    told = f"Content-Type {printable(shortened(content_type, _SHOWN))}" if content_type else "no Content-Type"
    raise RowError("fetch", "NotAnImage", f"{shown} is no image: its bytes look like {kind}, sent with {told}")


def too_large(shown: str, max_bytes: int) -> RowError:
    """Return what is said of a body over the limit."""
    message = f"{shown} must have at most {max_bytes} bytes: raise --max-image-bytes or shrink the image"
    return RowError("fetch", "TooLarge", message)


def length_of(headers: Mapping[str, str]) -> int | None:
    """Return the bytes that the server says will come, None where it says nothing that is a number."""
    text = headers.get("Content-Length", "")
    return int(text) if text.isascii() and text.isdigit() else None


def _seconds_of(retry_after: str | None, now_s: float) -> float | None:
    """The seconds of a Retry-After, which is a number or a date."""
    if retry_after is None:
        return None
    text = retry_after.strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - now_s)
    except (ValueError, TypeError, OverflowError):
        return None
