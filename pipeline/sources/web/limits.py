"""Limits: how far rows may go on the web, and how long it may take; one record from a job's settings."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from pipeline.storage.backoff import WAITS_S
from schemas.job import JobSettings

_SHARE = 0.9  # of a row's time: whoever counts it waits a little longer for what became of it


@dataclass(frozen=True, slots=True, kw_only=True)
class WebLimits:
    """Limits of what a row's http(s) URL may do. Fields without a comment are settings of a job, explained there."""

    connections: int = 64  # of one actor
    per_host: int = 16
    seconds: float | None = 54.0  # for one image with its redirects, tries and waits
    connect_seconds: float = 10.0  # for one connection
    read_seconds: float = 20.0  # without a byte
    max_redirects: int = 5
    waits_s: Sequence[float] = WAITS_S  # before each further try
    allow_hosts: tuple[str, ...] = ()
    deny_hosts: tuple[str, ...] = ()
    allow_private: bool = False
    use_proxies: bool = False  # those that the environment names
    user_agent: str = ""
    ignore_robots_tag: bool = False


def web_limits(settings: JobSettings) -> WebLimits:
    """Return the limits that a job's settings ask for."""
    return WebLimits(
        connections=settings.fetch_threads,
        per_host=settings.fetch_per_host,
        seconds=_SHARE * settings.row_seconds or None,
        connect_seconds=settings.fetch_connect_seconds,
        read_seconds=settings.fetch_read_seconds,
        max_redirects=settings.fetch_redirects,
        allow_hosts=settings.allow_hosts,
        deny_hosts=settings.deny_hosts,
        allow_private=settings.allow_private,
        use_proxies=settings.http_proxy,
        user_agent=settings.user_agent or own_user_agent(),
        ignore_robots_tag=settings.ignore_robots_tag,
    )


def own_user_agent() -> str:
    """Return the name under which we ask where no other is given."""
    try:
        return f"llava-batch/{version('llava-batch')}"
    except PackageNotFoundError:  # from a checkout that was never installed
        return "llava-batch"
