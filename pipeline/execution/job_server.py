"""Job server: Ray's job client that takes the very address it is given, and no longer for an answer than it may."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from ray.exceptions import AuthenticationError
from ray.job_submission import JobSubmissionClient

from schemas.errors import Refused

_CONNECT_S = 5.0
_VERSION, _VERSION_S = "/api/version", 8.0  # the first question, which tells whether a dashboard is there at all
_ANSWER_S = 20.0
_TAKE_S = 120.0  # an upload, a submission
_TALKATIVE = (  # each has a level of its own
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
    "ray._private.runtime_env.packaging",
)
_OVERRIDES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")  # Ray 2.60 prefers them to the address that it is given


class JobServer(JobSubmissionClient):
    """A job server's client. Whatever it asks has its answer in time, or raises OSError."""

    def _do_request(self, method: str, endpoint: str, **options: Any) -> Any:  # noqa: ANN401
        answer_s = _VERSION_S if endpoint == _VERSION else _ANSWER_S if method == "GET" else _TAKE_S
        limits = (_CONNECT_S, answer_s)  # Ray 2.60 sets none, and would wait for ever for a peer that is silent
        try:
            return super()._do_request(method, endpoint, timeout=limits, **options)
        except AuthenticationError as error:
            raise Refused(f"the cluster asks for a token: {_reason(error)}; {_MEND}") from error


_MEND = "set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH to the cluster's own"


def connect(address: str) -> JobServer:
    """Return a client of the dashboard at this address. Raises Refused for what is no address of one, and OSError,
    RuntimeError and others where nobody answers there, or somebody else."""
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.ERROR)
    with _nothing_preferred():
        return JobServer(url_of(address))


def url_of(address: str) -> str:
    """Return the URL of a dashboard; raise Refused for an address of another kind, as Ray's own `auto`."""
    url = address if "://" in address else f"http://{address}"
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or address in ("auto", "local"):
        raise Refused(f"--address must be that of a Ray dashboard, as http://head:8265, got {address or 'nothing'}")
    return url


@contextmanager
def _nothing_preferred() -> Iterator[None]:
    kept = {name: os.environ.pop(name) for name in _OVERRIDES if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)


def _reason(error: AuthenticationError) -> str:
    return str(error).partition("\n")[0].rstrip(".")
