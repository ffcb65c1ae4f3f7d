"""What may pass is tried again, what will not is not; against a server that fails for real."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx2
import pytest
from huggingface_hub.errors import HfHubHTTPError
from s3fs import S3FileSystem

from pipeline.run_folder.markers import Markers
from pipeline.sources.fetch import fetch
from pipeline.storage.backoff import is_transient, with_retries
from schemas.errors import RowError

QUICK = (0.01, 0.01, 0.01)


@dataclass(slots=True, kw_only=True)
class FlakyStore:
    """An S3 store of one object, `a.jpg`, that answers with `statuses` before it answers well."""

    statuses: list[int] = field(default_factory=list)
    asked: int = 0


@pytest.fixture
def flaky(monkeypatch: pytest.MonkeyPatch) -> Iterator[FlakyStore]:
    store = FlakyStore()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            store.asked += 1
            status = store.statuses.pop(0) if store.statuses else 206
            body = b"picture" if status == 206 else b"<Error><Code>Wrong</Code></Error>"
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_HEAD(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(b"picture")))
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}",
            "AWS_ACCESS_KEY_ID": "a",
            "AWS_SECRET_ACCESS_KEY": "b",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_MAX_ATTEMPTS": "1",  # only our own tries count here
            "NO_PROXY": "127.0.0.1",
        }.items():
            monkeypatch.setenv(name, value)
        S3FileSystem.clear_instance_cache()
        yield store
        S3FileSystem.clear_instance_cache()
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_store_that_is_busy_for_a_moment_costs_no_row(flaky: FlakyStore, status: int) -> None:
    flaky.statuses = [status] * 3
    assert fetch("s3://bucket/a.jpg", 100, QUICK) == b"picture"
    assert flaky.asked == 4


def test_a_store_that_stays_busy_fails_the_row_with_the_number_of_tries(flaky: FlakyStore) -> None:
    flaky.statuses = [503] * 100
    with pytest.raises(RowError, match="in 4 tries"):
        fetch("s3://bucket/a.jpg", 100, QUICK)


@pytest.mark.parametrize("status", [403, 404])
def test_what_is_forbidden_or_missing_is_not_asked_for_again(flaky: FlakyStore, status: int) -> None:
    flaky.statuses = [status] * 100
    with pytest.raises(RowError):
        fetch("s3://bucket/a.jpg", 100, QUICK)
    assert flaky.asked <= 2  # the client looks twice at what is missing


def test_a_store_that_nobody_answers_for_is_transient() -> None:
    assert is_transient(ConnectionRefusedError())
    assert is_transient(TimeoutError())
    assert not is_transient(FileNotFoundError(2, "no"))
    assert not is_transient(OSError(28, "disk full"))


def test_a_missing_file_fails_at_once(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        with_retries(lambda: (tmp_path / "none").read_bytes(), waits_s=(1000,))


def test_a_busy_store_costs_no_marker(flaky: FlakyStore) -> None:
    flaky.statuses = [503]
    assert Markers(folder="s3://bucket/out", driver="d").find("unit-00000001-preprocess") is None
    assert flaky.asked == 2


@pytest.mark.parametrize(("status", "passes"), [(503, True), (429, True), (401, False), (404, False)])
def test_the_status_of_the_hub_says_whether_its_error_passes(status: int, passes: bool) -> None:
    response = httpx2.Response(status, request=httpx2.Request("GET", "http://127.0.0.1/api/datasets/a/b"))
    assert is_transient(HfHubHTTPError("as the hub has it", response=response)) == passes
