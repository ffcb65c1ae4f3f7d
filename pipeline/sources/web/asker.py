"""Asker: the loop that asks servers: tries, redirects, bodies, each connection to an address that was checked."""

import asyncio
import random
import socket
import threading
import time
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import aiohttp
from aiohttp import ClientResponse, ClientSession, ClientTimeout, TCPConnector
from aiohttp.abc import ResolveResult
from yarl import URL

from pipeline.sources.web.addresses import Address, parsed, refusal
from pipeline.sources.web.faults import AddressRefused, meaning
from pipeline.sources.web.hosts import HostRules
from pipeline.sources.web.limits import WebLimits
from pipeline.sources.web.responses import (
    REDIRECTS,
    Transient,
    check_robots_tag,
    check_status,
    length_of,
    too_large,
)
from pipeline.sources.web.urls import check_url, next_url, parse_url, shown
from schemas.errors import RowError

_LOOKUPS = 32  # names resolved at once
_LONGEST_WAIT_S = 300.0  # that a server may ask for where a row has all the time in the world
_KEPT_S = 30.0  # that an idle connection and a resolved name are kept
_HEADER = 16_384  # bytes of one header: signed URLs are long
_CLOSING_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A server's answer, as it came."""

    body: bytes
    content_type: str
    encoding: str


class Asker:
    """Asks from a loop in a thread of its own; what is behind a proxy is asked in a session of its own."""

    def __init__(self, limits: WebLimits, rules: HostRules, lookup: Callable[[str], Sequence[str]]) -> None:
        self._limits, self._rules, self._lookup = limits, rules, lookup
        self._sessions: dict[bool, ClientSession] = {}  # by whether a proxy is asked
        self._proxies = urllib.request.getproxies_environment() if limits.use_proxies else {}
        self._closing = threading.Lock()
        self.loop = asyncio.new_event_loop()
        self.loop.set_default_executor(ThreadPoolExecutor(_LOOKUPS, "resolve"))
        self._thread = threading.Thread(target=self.loop.run_forever, name="http", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Close all connections and end the thread."""
        with self._closing:
            if self.loop.is_closed():
                return
            asyncio.run_coroutine_threadsafe(self._end(), self.loop).result(_CLOSING_S)
            self.loop.call_soon_threadsafe(self.loop.stop)
            self._thread.join(_CLOSING_S)
            self.loop.close()

    async def _end(self) -> None:
        for session in self._sessions.values():
            await session.close()

    async def ask(self, text: str, max_bytes: int) -> Answer:
        """Return the answer to a URL, within its time; what may pass is tried again."""
        try:
            async with asyncio.timeout(self._limits.seconds) as within:
                return await self._try(text, max_bytes, within.when())
        except TimeoutError as error:
            message = f"{shown(text)} could not be fetched in {self._limits.seconds:g} s (of --row-seconds): retry it"
            raise RowError("fetch", "TimedOut", message) from error

    async def _try(self, text: str, max_bytes: int, ends_at: float | None) -> Answer:
        tries = 0
        while True:
            tries += 1
            try:
                return await self._follow(text, max_bytes)
            except Transient as error:
                wait_s = self._wait_after(tries, error)
                latest = self.loop.time() + _LONGEST_WAIT_S if ends_at is None else ends_at
                if wait_s is None or self.loop.time() + wait_s >= latest:
                    raise _given_up(text, error, tries) from error
            await asyncio.sleep(wait_s)

    def _wait_after(self, tries: int, error: Transient) -> float | None:
        """Seconds to wait before the next try, None where there is none."""
        if tries > len(self._limits.waits_s):
            return None
        return max(self._limits.waits_s[tries - 1] * random.uniform(1, 1.5), error.after_s or 0.0)

    async def _follow(self, text: str, max_bytes: int) -> Answer:
        """The answer at the end of a URL's redirects, each checked anew."""
        url = parse_url(text)
        for _ in range(self._limits.max_redirects + 1):
            check_url(url, self._rules, allow_private=self._limits.allow_private)
            try:
                answer = await self._hop(url, max_bytes)
            except (aiohttp.ClientError, OSError) as error:
                raise meaning(error, url) from error
            if isinstance(answer, Answer):
                return answer
            url = answer
        most = self._limits.max_redirects
        raise RowError("fetch", "TooManyRedirects", f"{shown(text)} redirects more than {most} times")

    async def _hop(self, url: URL, max_bytes: int) -> Answer | URL:
        """Return what one server answers: a body, or where to go on."""
        proxy = self._proxy_of(url)
        session = self._session(proxied=proxy is not None)
        async with session.get(url, proxy=proxy, allow_redirects=False) as response:
            location = response.headers.get("Location")
            if response.status in REDIRECTS and location is not None:
                return next_url(url, location)
            name, headers = shown(url), response.headers
            check_status(name, response.status, response.reason or "", headers.get("Retry-After"), time.time())
            if not self._limits.ignore_robots_tag:
                check_robots_tag(name, headers.getall("X-Robots-Tag", ()), self._limits.user_agent)
            return Answer(
                body=await _body(response, name, max_bytes),
                content_type=headers.get("Content-Type", ""),
                encoding=headers.get("Content-Encoding", ""),
            )

    def _proxy_of(self, url: URL) -> str | None:
        """The proxy that the environment has for a URL, None where it has none or excepts the host."""
        proxy = self._proxies.get(url.scheme, self._proxies.get("all"))
        if proxy is None or urllib.request.proxy_bypass(url.raw_host or ""):
            return None
        return proxy if "://" in proxy else f"http://{proxy}"

    def _session(self, *, proxied: bool) -> ClientSession:
        """The session, made in the loop that it belongs to."""
        if proxied not in self._sessions:
            limits = self._limits
            check = {} if proxied else {"resolver": _CheckedResolver(self), "socket_factory": self._checked_socket}
            connector = TCPConnector(
                limit=limits.connections,
                limit_per_host=limits.per_host,
                keepalive_timeout=_KEPT_S,
                ttl_dns_cache=int(_KEPT_S),
                **check,  # type: ignore[arg-type]
            )
            self._sessions[proxied] = ClientSession(
                connector=connector,
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                headers={"User-Agent": limits.user_agent, "Accept": "image/*,*/*;q=0.5", "Accept-Encoding": "identity"},
                timeout=ClientTimeout(total=None, sock_connect=limits.connect_seconds, sock_read=limits.read_seconds),
                max_line_size=_HEADER,
                max_field_size=_HEADER,
            )
        return self._sessions[proxied]

    async def addresses_of(self, host: str) -> list[Address]:
        """Return the addresses of a name where all of them may be connected to; raises OSError."""
        try:
            found = await self.loop.run_in_executor(None, self._lookup, host)
        except UnicodeError as error:  # no name at all, as one with a label of 64 letters
            raise socket.gaierror(socket.EAI_NONAME, "it is no name of a host") from error
        addresses = [address for one in dict.fromkeys(found) if (address := parsed(one)) is not None]
        for address in addresses:
            if (what := refusal(address, allow_private=self._limits.allow_private)) is not None:
                raise AddressRefused(what=what)
        if (rule := self._rules.refusal(host, addresses)) is not None:
            raise AddressRefused(rule=rule)
        if not addresses:
            raise socket.gaierror(socket.EAI_NONAME, "it has no address")
        return addresses

    def _checked_socket(self, info: aiohttp.AddrInfoType) -> socket.socket:
        """The socket of a connection: whatever led to it, the address that it will be of is looked at once more."""
        address = parsed(str(info[4][0]))
        what = "no address" if address is None else refusal(address, allow_private=self._limits.allow_private)
        if what is not None:
            raise AddressRefused(what=what)
        return socket.socket(info[0], info[1], info[2])


class _CheckedResolver(aiohttp.abc.AbstractResolver):
    """Resolves to addresses that were checked, which are those that are connected to."""

    def __init__(self, asker: Asker) -> None:
        self._asker = asker

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        return [
            ResolveResult(
                hostname=host,
                host=str(address),
                port=port,
                family=socket.AF_INET if address.version == 4 else socket.AF_INET6,
                proto=0,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for address in await self._asker.addresses_of(host)
        ]

    async def close(self) -> None:
        """Nothing is held."""


async def _body(response: ClientResponse, name: str, max_bytes: int) -> bytes:
    """The body, of which no more is taken in than the limit."""
    if (length_of(response.headers) or 0) > max_bytes:
        raise too_large(name, max_bytes)
    parts, size = list[bytes](), 0
    async for part in response.content.iter_any():
        parts.append(part)
        size += len(part)
        if size > max_bytes:
            raise too_large(name, max_bytes)
    return b"".join(parts)


def _given_up(text: str, error: Transient, tries: int) -> RowError:
    asked = "" if error.after_s is None else f"; the server asks for {error.after_s:.0f} s of peace"
    times = "1 try" if tries == 1 else f"{tries} tries"
    message = f"{shown(text)} could not be fetched in {times} ({error.why}{asked}): retry the row"
    return RowError("fetch", error.type, message)
