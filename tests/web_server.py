"""A server of this machine for tests of the web: each path is a script of what it sends, byte for byte."""

import asyncio
import gzip
import io
import ssl
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from PIL import Image

Script = Callable[["Ask"], AsyncIterator[bytes]]
BOMB_BYTES = 50_000_000
LARGE_BYTES = 6_000_000
PDF = b"%PDF-1.7 not much of one"


def picture(side: int = 24, format: str = "PNG") -> bytes:
    """An encoded picture of one colour."""
    file = io.BytesIO()
    Image.new("RGB", (side, side), (200, 30, 30)).save(file, format)
    return file.getvalue()


PNG = picture()


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One request: its path with the query, its headers in lower case, how many came for the path before it."""

    path: str
    headers: dict[str, str]
    before: int


def response(status: str = "200 OK", body: bytes = PNG, *headers: str) -> bytes:
    """A whole response; a Content-Length of its own only where `headers` has none."""
    if not any(one.startswith("Content-Length") for one in headers):
        headers = (*headers, f"Content-Length: {len(body)}")
    return "\r\n".join([f"HTTP/1.1 {status}", *headers, "", ""]).encode() + body


def sends(*parts: bytes) -> Script:
    """A script that sends these and is done."""

    async def script(_: Ask) -> AsyncIterator[bytes]:
        for part in parts:
            yield part

    return script


def after(times: int, first: bytes, then: bytes) -> Script:
    """A script that sends `first` so many times, and `then` from then on."""

    async def script(ask: Ask) -> AsyncIterator[bytes]:
        yield first if ask.before < times else then

    return script


async def _for_ever(_: Ask) -> AsyncIterator[bytes]:
    yield b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\nConnection: close\r\n\r\n"
    while True:
        yield PNG[:8] + bytes(50_000)


async def _says_nothing(_: Ask) -> AsyncIterator[bytes]:
    await asyncio.sleep(3600)
    yield b""


async def _stops_in_the_middle(_: Ask) -> AsyncIterator[bytes]:
    yield response()[:-20]
    await asyncio.sleep(3600)


async def _drips(_: Ask) -> AsyncIterator[bytes]:
    yield response("200 OK", b"", "Content-Length: 100000")
    while True:
        await asyncio.sleep(0.01)
        yield b"x"


async def _header_drips(_: Ask) -> AsyncIterator[bytes]:
    yield b"HTTP/1.1 200 OK\r\nX-Long: "
    while True:
        await asyncio.sleep(0.01)
        yield b"x"


def _without_end(begin: bytes, more: bytes) -> Script:
    """A script that begins so and never stops sending the rest."""

    async def script(_: Ask) -> AsyncIterator[bytes]:
        yield begin
        while True:
            yield more

    return script


def _later(begin: bytes, rest: Script) -> Script:
    """A script that begins so, and goes on once that has been read for itself."""

    async def script(ask: Ask) -> AsyncIterator[bytes]:
        yield begin
        await asyncio.sleep(0.2)
        async for part in rest(ask):
            yield part

    return script


_EARLY = b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"
_CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def _to_raw(place: bytes) -> Script:
    return sends(b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\nLocation: " + place + b"\r\n\r\n")


async def _echo(ask: Ask) -> AsyncIterator[bytes]:
    yield response(body=repr(sorted(ask.headers.items())).encode())


async def _redirects(ask: Ask) -> AsyncIterator[bytes]:
    """`/redirects/3` leads to `/redirects/2`, `/redirects/0` to the picture."""
    left = int(ask.path.rsplit("/", 1)[1])
    yield response("302 Found", b"", f"Location: /redirects/{left - 1}" if left else "Location: /ok")


def chunked(*parts: bytes) -> bytes:
    """The body of these parts as `Transfer-Encoding: chunked` has it."""
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (*parts, b""))


async def _to_another(ask: Ask) -> AsyncIterator[bytes]:
    yield response("302 Found", b"", f"Location: //other.test:{ask.headers['host'].split(':')[1]}/ok")


async def _to_what_is_asked(ask: Ask) -> AsyncIterator[bytes]:
    """`/to?https://a.test/b` leads there."""
    yield response("302 Found", b"", f"Location: {ask.path.partition('?')[2]}")


def _to(place: str) -> Script:
    return sends(response("302 Found", b"", f"Location: {place}"))


_BOMB = gzip.compress(bytes(BOMB_BYTES))
SCRIPTS: dict[str, Script] = {
    "/ok": sends(response("200 OK", PNG, "Content-Type: image/png")),
    "/jpeg": sends(response(body=picture(format="JPEG"))),
    "/large": sends(response("200 OK", PNG + bytes(LARGE_BYTES - len(PNG)))),
    "/a.pdf": sends(response("200 OK", PDF)),
    "/404": sends(response("404 Not Found", b"<html>no")),
    "/410": sends(response("410 Gone", b"")),
    "/403": sends(response("403 Forbidden", b"")),
    "/401": sends(response("401 Unauthorized", b"")),
    "/418": sends(response("418 I'm a teapot", b"")),
    "/204": sends(response("204 No Content", b"")),
    "/500": sends(response("500 Internal Server Error", b"")),
    "/501": sends(response("501 Not Implemented", b"")),
    "/429": sends(response("429 Too Many Requests", b"", "Retry-After: 0")),
    "/429-for-long": sends(response("429 Too Many Requests", b"", "Retry-After: 86400")),
    "/429-by-date": sends(response("429 Too Many Requests", b"", "Retry-After: Fri, 31 Dec 2094 23:59:59 GMT")),
    "/429-once": after(1, response("429 Too Many Requests", b"", "Retry-After: 0"), response()),
    "/503-twice": after(2, response("503 Slow Down", b"", "Retry-After: soon"), response()),
    "/reset-once": after(1, b"", response()),
    "/truncated-once": after(1, response()[:-20], response()),
    "/truncated": sends(response()[:-20]),
    "/truncated-chunk": sends(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked(PNG)[:-9]),
    "/too-short-a-length": sends(response("200 OK", PNG, f"Content-Length: {len(PNG) - 9}")),
    "/length-of-a-petabyte": sends(response("200 OK", PNG, "Content-Length: 1000000000000000")),
    "/length-of-words": sends(response("200 OK", PNG, "Content-Length: many")),
    "/no-http": sends(b"220 mail.example ESMTP\r\n"),
    "/empty": sends(response(body=b"")),
    "/chunked": sends(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked(PNG[:10], PNG[10:])),
    "/no-length": sends(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + PNG),
    "/for-ever": _for_ever,
    "/says-nothing": _says_nothing,
    "/stops-in-the-middle": _stops_in_the_middle,
    "/drips": _drips,
    "/header-drips": _header_drips,
    "/html": sends(response("200 OK", b"<!DOCTYPE html><title>moved</title>", "Content-Type: image/png")),
    "/json": sends(response("200 OK", b'{"error": "no"}', "Content-Type: application/json; charset=utf-8")),
    "/gzip": sends(response("200 OK", gzip.compress(PNG), "Content-Encoding: gzip")),
    "/gzip-bomb": sends(response("200 OK", _BOMB, "Content-Encoding: gzip")),
    "/gzip-twice": sends(response("200 OK", gzip.compress(_BOMB), "Content-Encoding: gzip, gzip")),
    "/gzip-cut": sends(response("200 OK", gzip.compress(PNG)[:-12], "Content-Encoding: gzip")),
    "/gzip-and-more": sends(response("200 OK", gzip.compress(PNG[:40]) * 2, "Content-Encoding: gzip")),
    "/gzip-not": sends(response("200 OK", PNG, "Content-Encoding: gzip")),
    "/brotli": sends(response("200 OK", PNG, "Content-Encoding: br")),
    "/noai": sends(response("200 OK", PNG, "X-Robots-Tag: noindex, noai")),
    "/noimageai": sends(response("200 OK", PNG, "X-Robots-Tag: all", "X-Robots-Tag: NoImageAI")),
    "/noai-for-another": sends(response("200 OK", PNG, "X-Robots-Tag: otherbot: noai")),
    "/noai-for-us": sends(response("200 OK", PNG, "X-Robots-Tag: Test-Agent: noai")),
    "/early-hints": sends(_EARLY * 3 + response()),
    "/early-hints-for-ever": _without_end(_EARLY, _EARLY * 50),
    "/trailers": sends(_CHUNKED + chunked(PNG)[:-2] + b"X-Checksum: 1\r\n\r\n"),
    "/trailers-for-ever": _without_end(_CHUNKED + chunked(PNG)[:-2], b"X-Checksum: 1\r\n" * 50),
    "/trailers-for-ever-later": _later(_CHUNKED, _without_end(chunked(PNG)[:-2], b"X-Checksum: 1\r\n" * 50)),
    "/chunk-of-words": sends(_CHUNKED + b"zz\r\nabc\r\n0\r\n\r\n"),
    "/chunk-without-end": _without_end(_CHUNKED + b"5;", b"x" * 1000),
    "/headers-for-ever": _without_end(b"HTTP/1.1 200 OK\r\n", b"X-Long: " + b"x" * 9000 + b"\r\n"),
    "/status-without-end": _without_end(b"H", b"H" * 1000),
    "/image-alone": sends(PNG),
    "/two-lengths": sends(response("200 OK", PNG, "Content-Length: 5", f"Content-Length: {len(PNG)}")),
    "/length-below-zero": sends(response("200 OK", PNG, "Content-Length: -5")),
    "/length-and-chunks": sends(response("200 OK", chunked(PNG), "Content-Length: 5", "Transfer-Encoding: chunked")),
    "/chunk-of-exabytes": sends(_CHUNKED + b"ffffffffffffffff\r\nabc"),
    "/latin-1-headers": sends(b"HTTP/1.1 404 caf\xe9\r\nContent-Length: 0\r\n\r\n"),
    "/latin-1-type": sends(b"HTTP/1.1 200 OK\r\nContent-Type: caf\xe9\r\nContent-Length: 6\r\n\r\n<html>"),
    "/to-latin-1": _to_raw(b"/caf\xe9/a%20b?c=\xe9"),
    "/to-utf-8": _to_raw("/café".encode()),
    "/to-a-fragment": _to_raw(b"/ok#part"),
    "/to-port-0": _to_raw(b"http://127.0.0.1:0/"),
    "/to-port-65536": _to_raw(b"http://127.0.0.1:65536/"),
    "/to-data": _to_raw(b"data:image/png;base64,AAAA"),
    "/echo": _echo,
    "/round": _to("/round"),
    "/to-nowhere": sends(response("302 Found", b"")),
    "/to-metadata": _to("http://169.254.169.254/latest/meta-data/"),
    "/to-loopback": _to("//127.0.0.1:9/"),
    "/to-a-file": _to("file:///etc/passwd"),
    "/to": _to_what_is_asked,
    "/to-another": _to_another,
    "/to-rubbish": _to("http://[/"),
}


@dataclass(slots=True, kw_only=True)
class Web:
    """A running server: where it is, and what was asked of it."""

    port: int = 0
    asks: list[Ask] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    connections: int = 0
    open: int = 0
    most_open: int = 0

    def url(self, path: str, host: str = "127.0.0.1") -> str:
        """The URL of a path."""
        return f"http://{host}:{self.port}{path}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests of one connection."""
        self.connections += 1
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while await self._answer(reader, writer):
                pass
        self.open -= 1
        writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer one request; False where the connection is not to be kept."""
        lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        path = lines[0].split(" ")[1]
        headers = dict(line.lower().split(": ", 1) for line in lines[1:] if line)
        ask = Ask(path=path, headers=headers, before=self.counts[path])
        self.asks.append(ask)
        self.counts[path] += 1
        name = urlsplit(path).path  # to a proxy the whole URL is said
        sent = bytearray()
        async for part in _script_of(name)(ask):
            writer.write(part)
            await writer.drain()
            sent = sent or bytearray(part)
        return b"Content-Length: " in sent and name in KEPT


KEPT = ("/ok", "/404", "/jpeg")


def _script_of(name: str) -> Script:
    return _redirects if name.startswith("/redirects/") else SCRIPTS.get(name, SCRIPTS["/404"])


@contextmanager
def serving_folder(folder: Path) -> Iterator[str]:
    """Return the URL of a folder's files, which are sent in ranges as well, as long as the block runs."""
    loop, ready, runner = asyncio.new_event_loop(), threading.Event(), web.AppRunner(web.Application())
    runner.app.router.add_static("/", folder)

    async def begin() -> None:
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        ready.set()

    def run() -> None:
        loop.run_until_complete(begin())
        loop.run_forever()
        loop.run_until_complete(runner.cleanup())
        loop.close()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert ready.wait(10)
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)


def own_certificate(folder: Path, host: str) -> ssl.SSLContext:
    """What a server needs that vouches for itself."""
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
    begin, end = datetime(2020, 1, 1, tzinfo=UTC), datetime(2120, 1, 1, tzinfo=UTC)
    made = x509.CertificateBuilder(name, name, key.public_key(), 1, begin, end)
    signed = made.add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), False).sign(key, hashes.SHA256())
    encoding, no = serialization.Encoding.PEM, serialization.NoEncryption()
    file = folder / "server.pem"
    file.write_bytes(key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, no) + signed.public_bytes(encoding))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    return context


@contextmanager
def serving(tls: ssl.SSLContext | None = None) -> Iterator[Web]:
    """A server on loopback in a thread of this process, as long as the block runs; by https where `tls` is given."""
    server, loop, ready, done = Web(), asyncio.new_event_loop(), threading.Event(), asyncio.Event()

    async def serve() -> None:
        listening = await asyncio.start_server(server.serve, "127.0.0.1", 0, backlog=1024, ssl=tls)
        server.port = listening.sockets[0].getsockname()[1]
        ready.set()
        await done.wait()
        listening.close()
        connections = asyncio.all_tasks() - {asyncio.current_task()}
        for task in connections:
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)
        await asyncio.sleep(0.01)  # transports close in the loop's next round
        await loop.shutdown_asyncgens()

    def run() -> None:
        loop.run_until_complete(serve())
        loop.close()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert ready.wait(10)
    try:
        yield server
    finally:
        loop.call_soon_threadsafe(done.set)
        thread.join(10)
