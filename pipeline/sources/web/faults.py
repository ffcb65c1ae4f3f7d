"""Faults: what goes wrong between us and a server, as the failure of a row or as something that may pass."""

import socket

import aiohttp
from aiohttp.http_exceptions import BadHttpMessage, PayloadEncodingError
from yarl import URL

from pipeline.sources.web.responses import Transient
from pipeline.sources.web.urls import not_allowed, private, shown
from pipeline.storage.backoff import is_transient
from schemas.errors import RowError
from schemas.wording import one_line, printable, shortened

_SHOWN = 120  # characters of what a library says
_NO_SUCH_HOST = (socket.EAI_NONAME, socket.EAI_NODATA, socket.EAI_FAIL)


class AddressRefused(OSError):
    """A name leads where rows may not go: `what` the address is, or the `rule` that leaves the host out."""

    def __init__(self, *, what: str | None = None, rule: str | None = None) -> None:
        super().__init__(what or rule)
        self.what, self.rule = what, rule


def meaning(error: Exception, url: URL) -> RowError | Transient:
    """Return what an error of the connection means for the row whose URL this is."""
    cause = getattr(error, "os_error", error)
    if isinstance(cause, AddressRefused):
        return private(url, cause.what) if cause.what is not None else not_allowed(url, cause.rule or "")
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return _of_lookup(cause, url)
    if isinstance(error, aiohttp.ClientResponseError | aiohttp.ClientPayloadError):
        return _of_response(error, url)
    if isinstance(error, TimeoutError):
        is_connecting = isinstance(error, aiohttp.ConnectionTimeoutError)
        what = "connection within --fetch-connect-seconds" if is_connecting else "byte within --fetch-read-seconds"
        return _failed("TimedOut", url, f"no {what}")
    if isinstance(error, aiohttp.ClientSSLError):
        return _failed("BadCertificate", url, _said(error), "its server must be one that can be trusted")
    return _of_connection(error, cause, url)


def _of_response(error: Exception, url: URL) -> RowError | Transient:
    if isinstance(error, aiohttp.ClientPayloadError) and not _is_malformed(error.__cause__):
        return Transient("Truncated", "the server ended the image too early")
    if isinstance(error, aiohttp.ClientHttpProxyError):
        return _failed("ProxyFailed", url, f"the proxy answers {error.status}", "see --http-proxy")
    return _failed("BadResponse", url, "the server does not speak HTTP/1.1", "look at it with another client")


def _is_malformed(cause: BaseException | None) -> bool:
    """Tell whether what came behind the headers is no HTTP, as trailers without end: that passes by no new try."""
    return isinstance(cause, BadHttpMessage) and not isinstance(cause, PayloadEncodingError)


def _of_lookup(cause: object, url: URL) -> RowError | Transient:
    if isinstance(cause, socket.gaierror) and cause.errno not in _NO_SUCH_HOST:
        return Transient("HostNotFound", f"the name of its host cannot be resolved now: {cause.strerror}")
    return _failed("HostNotFound", url, "its host has no address", "check the name")


def _of_connection(error: Exception, cause: object, url: URL) -> RowError | Transient:
    if isinstance(error, aiohttp.ClientConnectorError) and isinstance(cause, OSError):
        why = f"no connection: {_said(cause)}"
        return Transient("ConnectionFailed", why) if is_transient(cause) else _failed("ConnectionFailed", url, why)
    if isinstance(error, aiohttp.ClientConnectionError | OSError):
        return Transient("ConnectionLost", "the server ended the connection")
    return _failed("FetchFailed", url, f"{type(error).__name__}: {_said(error)}")


def _failed(type: str, url: URL, why: str, advice: str = "retry the row") -> RowError:
    return RowError("fetch", type, f"{shown(url)} could not be fetched ({why}): {advice}")


def _said(error: Exception) -> str:
    text = getattr(error, "strerror", None) or one_line(error)
    return printable(shortened(str(text), _SHOWN))
