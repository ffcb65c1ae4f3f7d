"""Backoff: what fails for a moment is tried again, with longer and longer waits; what fails for good is not."""

import errno
import random
import time
from collections.abc import Callable, Sequence
from http.client import HTTPException
from typing import TypeVar

T = TypeVar("T")

WAITS_S: Sequence[float] = (0.5, 2.0, 8.0)  # before the second, third and fourth try, each up to half as long again
_ERRNOS = frozenset(
    {
        *(errno.EAGAIN, errno.EBUSY, errno.EINTR, errno.ESTALE, errno.ETIMEDOUT),
        *(errno.ECONNABORTED, errno.ECONNREFUSED, errno.ECONNRESET, errno.EPIPE),
        *(errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETRESET, errno.ENETUNREACH),
    }
)
_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504})
_NAMES = (
    "Timeout",
    "ConnectionError",
    "ConnectionClosed",
    "EndpointConnection",
    "ServerDisconnected",
    "IncompleteRead",
    "ConnectError",
    "ReadError",
    "RemoteProtocolError",
)


def with_retries(step: Callable[[], T], waits_s: Sequence[float] = WAITS_S) -> T:
    """Return what `step` returns, tried again after each wait while it fails in a way that may pass."""
    for wait_s in waits_s:
        try:
            return step()
        except OSError as error:
            if not is_transient(error):
                raise
        time.sleep(wait_s * random.uniform(1, 1.5))  # many workers must not come back at the same moment
    return step()


def is_transient(error: BaseException) -> bool:
    """Return whether this error, or what caused it, is a timeout, a broken connection, a 429 or a 5xx."""
    if isinstance(error, TimeoutError | ConnectionError | HTTPException):
        return True
    if isinstance(error, OSError) and error.errno in _ERRNOS:
        return True
    if _status(error) in _STATUSES or any(name in type(error).__name__ for name in _NAMES):
        return True
    return error.__cause__ is not None and is_transient(error.__cause__)


def _status(error: BaseException) -> int | None:
    """Return the HTTP status that an error of a store's client carries, wherever that client keeps it."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):  # botocore
        response = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    response = getattr(response, "status_code", response)  # huggingface_hub
    found = [response, *(getattr(error, name, None) for name in ("status", "status_code", "code"))]
    return next((one for one in found if isinstance(one, int)), None)
