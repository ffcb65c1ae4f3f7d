"""A proxy before the S3 server of this machine that fails requests for real, as a store does that throttles.

A test module says `pytest_plugins = ["tests.object_store", "tests.flaky_store"]`.
"""

import http.client
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from threading import Thread
from typing import ClassVar, Literal
from urllib.parse import urlsplit

import pytest
from s3fs import S3FileSystem

from pipeline.storage import filesystem as fs

Way = Literal["503", "reset", "slow"]
SLOW_S = 0.3
SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"


@dataclass(slots=True, kw_only=True)
class Proxy:
    """Stands before the store and fails the next requests, or every third, before they get there or after."""

    store: str
    failures: int = 0
    throttles: bool = False  # every third request fails, each in another way
    command: str = ""  # of those that are failed; all where it is empty
    reaches_store: bool = False
    failed: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    num_sent: int = 0  # bytes of the store's own answers
    numbers: Iterator[int] = field(default_factory=count)

    def way(self, command: str) -> Way | None:
        """Return how the next request fails, None where it does not."""
        if self.throttles:
            number = next(self.numbers)
            ways: tuple[Way, ...] = ("503", "reset", "slow")
            return ways[number // 3 % 3] if number % 3 == 0 else None
        fails = self.failures > 0 and self.command in ("", command)
        self.failures -= fails
        return "503" if fails else None


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: ClassVar[Proxy]

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.proxy.asked.append(f"{self.command} {self.path}")
        way = self.proxy.way(self.command)
        if way == "slow":
            time.sleep(SLOW_S)
        fails = way in ("503", "reset")
        status, headers, data = 503, [("Content-Length", str(len(SLOW_DOWN)))], SLOW_DOWN
        if fails:
            self.proxy.failed.append(self.command)
        if not fails or self.proxy.reaches_store:
            answered = self._ask_store(body)
            status, headers, data = (status, headers, data) if fails else answered
        if way == "reset":
            self._reset()
            return
        self.send_response_only(status)
        for key, value in headers:
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)
            self.proxy.num_sent += 0 if fails else len(data)

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = answer

    def _ask_store(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        there = http.client.HTTPConnection(urlsplit(self.proxy.store).netloc)
        there.request(self.command, self.path, body, dict(self.headers))
        response = there.getresponse()
        headers = [(k, v) for k, v in response.getheaders() if k.lower() not in ("connection", "date")]
        data = response.read()
        there.close()
        return response.status, headers, data

    def _reset(self) -> None:
        """Break the connection in the middle of an answer."""
        self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\nhalf")
        self.wfile.flush()
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Keep quiet."""


@pytest.fixture
def proxy(store: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """A proxy, and through it the new bucket s3://flaky."""
    state = Proxy(store=store)
    with ThreadingHTTPServer(("127.0.0.1", 0), type("OfThisProxy", (Handler,), {"proxy": state})) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")  # only our own tries count here
        S3FileSystem.clear_instance_cache()
        S3FileSystem().mkdir("flaky")
        yield state
        state.failures, state.throttles = 0, False
        fs.delete("s3://flaky")
        S3FileSystem().rmdir("flaky")
        S3FileSystem.clear_instance_cache()
        server.shutdown()
        thread.join()
