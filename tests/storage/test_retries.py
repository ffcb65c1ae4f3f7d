"""Every way into a store outlives a failure that passes, in storage itself; through a proxy that fails for real."""

import http.client
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from s3fs import S3FileSystem

from pipeline.sources.finding import find_files
from pipeline.storage import filesystem as fs

pytest_plugins = ["tests.object_store"]

URL = "s3://flaky/d/a.parquet"


@dataclass(slots=True, kw_only=True)
class Proxy:
    """Stands before the store and fails the next requests, before they get there or after."""

    failures: int = 0
    command: str = ""  # of those that are failed; all where it is empty
    reaches_store: bool = False
    failed: list[str] = field(default_factory=list)


@pytest.fixture
def proxy(store: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    state = Proxy()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            fails = state.failures > 0 and state.command in ("", self.command)
            state.failures -= fails
            status, headers, data = 503, [("Content-Length", "0")], b""
            if fails:
                state.failed.append(self.command)
            if not fails or state.reaches_store:
                there = http.client.HTTPConnection(urlsplit(store).netloc)
                there.request(self.command, self.path, body, dict(self.headers))
                response = there.getresponse()
                if not fails:
                    status, data = response.status, response.read()
                    headers = [(k, v) for k, v in response.getheaders() if k.lower() not in ("connection", "date")]
                there.close()
            self.send_response_only(status)
            for key, value in headers:
                self.send_header(key, value)
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = answer

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")  # only our own tries count here
        S3FileSystem.clear_instance_cache()
        S3FileSystem().mkdir("flaky")
        sink = pa.BufferOutputStream()
        pq.write_table(pa.table({"id": ["a"]}), sink)
        fs.write_atomic(URL, sink.getvalue().to_pybytes())
        yield state
        state.failures = 0
        fs.delete("s3://flaky/d")
        S3FileSystem().rmdir("flaky")
        S3FileSystem.clear_instance_cache()
        server.shutdown()
        thread.join()


def read_footer() -> object:
    with fs.open_url(URL) as file, pq.ParquetFile(file) as parquet:
        return parquet.metadata.num_rows


@pytest.mark.parametrize(
    ("step", "result"),
    [
        pytest.param(lambda: fs.read_bytes(URL, 4), b"PAR1", id="read"),
        pytest.param(lambda: fs.exists(URL), True, id="exists"),
        pytest.param(lambda: len(fs.list_folder("s3://flaky/d")), 1, id="list"),
        pytest.param(lambda: len(find_files("s3://flaky/*/*.parquet", (".parquet",)).files), 1, id="find"),
        pytest.param(lambda: fs.write_atomic("s3://flaky/d/b", b"x"), None, id="write"),
        pytest.param(lambda: fs.create_new("s3://flaky/d/c", b"x"), True, id="create"),
        pytest.param(lambda: fs.delete("s3://flaky/d"), None, id="delete"),
        pytest.param(read_footer, 1, id="footer"),
    ],
)
def test_a_store_that_fails_for_a_moment_is_asked_again(
    proxy: Proxy, step: Callable[[], object], result: object
) -> None:
    proxy.failures = 1
    assert step() == result
    assert len(proxy.failed) == 1


def test_a_ranged_read_is_tried_again_where_it_began(proxy: Proxy) -> None:
    with fs.open_url(URL) as file:
        file.seek(-4, os.SEEK_END)
        proxy.failures = 1
        assert file.read() == b"PAR1"
    assert proxy.failed == ["GET"]


def test_a_put_whose_answer_is_lost_finds_its_own_and_not_anothers(proxy: Proxy) -> None:
    proxy.failures, proxy.command, proxy.reaches_store = 1, "PUT", True
    assert fs.create_new("s3://flaky/d/lock", b"mine")
    assert proxy.failed == ["PUT"]
    assert not fs.create_new("s3://flaky/d/lock", b"other")
    assert fs.read_bytes("s3://flaky/d/lock") == b"mine"
