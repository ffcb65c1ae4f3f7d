"""URLs: the one reading of a URL of the web, and what may be said of it before anything is asked."""

import re
from typing import TYPE_CHECKING
from urllib.parse import quote, urljoin

from pipeline.sources.web.addresses import literal, refusal
from pipeline.sources.web.hosts import HostRules
from schemas.errors import RowError
from schemas.wording import shortened

if TYPE_CHECKING:
    from yarl import URL

SCHEMES = ("http", "https")
_SHOWN = 200  # characters of a URL in a message
# Spelled as RFC 3986 has it: sent as it stands, as what is signed may not be spelled otherwise.
_AS_IT_IS = re.compile(r"[A-Za-z0-9._~:/?#\[\]@!$&'()*+,;=%-]+")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_NO_TEXT = re.compile("[\udc80-\udcff]+")  # as headers have bytes that are not UTF-8


def shown(url: object) -> str:
    """Return a URL for a message: without user, password, token or signature, and in short."""
    return shortened(str(url), _SHOWN)


def parse_url(text: str) -> "URL":
    """Return the URL that is asked for, its host the one spelling of an address if it is one; raises RowError."""
    from yarl import URL

    if _CONTROL.search(text):
        raise _bad(text, "it must hold no control character")
    try:
        url = URL(text, encoded=_AS_IT_IS.fullmatch(text) is not None)
        host, port = url.raw_host, url.port
        if url.scheme not in SCHEMES:
            raise _bad(text, f"images of the web are fetched by http and https, not by {shortened(url.scheme, 20)}")
        if not host or not host.isascii() or not host.strip(".") or not port:
            raise _bad(text, "it must have a host, and a port from 1 to 65535 where it has one")
        address = literal(host)
        return url if address is None or str(address) == host else url.with_host(str(address))
    except ValueError as error:
        raise _bad(text, "its host or port cannot be read") from error


def next_url(url: "URL", location: str) -> "URL":
    """Return where a redirect leads from a URL; raises RowError."""
    try:
        return parse_url(urljoin(str(url), _NO_TEXT.sub(_escaped, location.strip())))
    except ValueError as error:
        raise _bad(location, "a server redirects to it and it cannot be read") from error


def _escaped(letters: re.Match[str]) -> str:
    """Return the bytes of a header that are not UTF-8 as a browser sends them on."""
    return quote(letters[0].encode("utf-8", "surrogateescape"))


def place_of(url: "URL") -> str:
    """Return where a URL is, in the one spelling that URLs are compared in: no user, no query, no escapes."""
    return f"{url.scheme}://{(url.raw_host or '').lower()}:{url.port}{url.path}"


def check_url(url: "URL", rules: HostRules, *, allow_private: bool) -> None:
    """Raise RowError where a URL's host may not be asked, as far as that is known before it is resolved."""
    host = url.raw_host or ""
    address = literal(host)
    if address is not None and (what := refusal(address, allow_private=allow_private)) is not None:
        raise private(url, what)
    if (why := rules.refusal(host, None if address is None else [address])) is not None:
        raise not_allowed(url, why)


def private(url: object, what: str) -> RowError:
    """Return what is said of a host that is no public one."""
    message = f"{shown(url)} leads to {what}, which rows may not reach: --allow-private lets them into your own network"
    return RowError("fetch", "PrivateAddress", message)


def not_allowed(url: object, why: str) -> RowError:
    """Return what is said of a host that the job's own rules leave out."""
    return RowError("fetch", "HostNotAllowed", f"the host of {shown(url)} may not be asked: {why}")


def _bad(text: str, why: str) -> RowError:
    return RowError("fetch", "BadURL", f"{shown(text)} is no URL of an image: {why}")
