"""Client: images of the web for many threads, over connections that are kept."""

import asyncio
import socket
import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.sources.web.hosts import HostRules
from pipeline.sources.web.limits import WebLimits
from pipeline.sources.web.responses import check_is_image, decoded
from pipeline.sources.web.urls import shown
from schemas.errors import RowError
from schemas.packages import install_line

if TYPE_CHECKING:
    from pipeline.sources.web.asker import Asker

Lookup = Callable[[str], Sequence[str]]  # a host's name -> its addresses; raises OSError
INSTALL = f"http:// and https:// need a package that is not installed: {install_line('http')}"


def system_lookup(host: str) -> Sequence[str]:
    """Return the addresses that the system's resolver has for a name."""
    return [str(found[4][0]) for found in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetched:
    """The bytes behind a URL, and what the server called them."""

    body: bytes
    content_type: str


class WebClient:
    """Fetches from any thread; the connections are one loop's, in a thread that starts with the first URL."""

    def __init__(self, limits: WebLimits, lookup: Lookup = system_lookup) -> None:
        self._limits = limits
        self._rules = HostRules(limits.allow_hosts, limits.deny_hosts)
        self._lookup = lookup
        self._starting = threading.Lock()
        self._asker: Asker | None = None

    def image(self, url: str, max_bytes: int) -> bytes:
        """Return the encoded image behind a URL; raises RowError for what is known to be none."""
        fetched = self.fetch(url, max_bytes)
        check_is_image(shown(url), fetched.body, fetched.content_type)
        return fetched.body

    def fetch(self, url: str, max_bytes: int) -> Fetched:
        """Return what is behind a URL, redirects followed; raises RowError by what went wrong."""
        asker = self._started()
        answer = asyncio.run_coroutine_threadsafe(asker.ask(url, max_bytes), asker.loop).result()
        body = decoded(shown(url), answer.body, answer.encoding, max_bytes)
        return Fetched(body=body, content_type=answer.content_type)

    def close(self) -> None:
        """Close the connections; the next URL opens new ones."""
        with self._starting:
            asker, self._asker = self._asker, None
        if asker is not None:
            asker.close()

    def _started(self) -> "Asker":
        with self._starting:
            if self._asker is None:
                try:
                    from pipeline.sources.web.asker import Asker  # aiohttp is an extra
                except ImportError as error:
                    raise RowError("fetch", "UnsupportedScheme", INSTALL) from error
                self._asker = Asker(self._limits, self._rules, self._lookup)
                weakref.finalize(self, self._asker.close)
            return self._asker
