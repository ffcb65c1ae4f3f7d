"""A dataset folder put on a hub of this machine."""

import base64
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub import constants

from pipeline.exports.destination import MARK
from pipeline.exports.push import check_push, push_dataset
from schemas.errors import Refused
from tests.exports.runs import tree


class Handler(BaseHTTPRequestHandler):
    """What committing to the hub takes: a repository, how each file is to be sent, one commit of them all."""

    protocol_version = "HTTP/1.1"
    made: list[str]
    files: dict[str, bytes]

    def log_message(self, *_: object) -> None:
        """Keep quiet."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            self.made.append(f"{asked['type']} {asked['organization']}/{asked['name']}")
            self._send({"url": f"http://{self.headers['Host']}/datasets/owner/name"})
        elif self.path == "/api/validate-yaml":
            self._send({"errors": [], "warnings": []})
        elif self.path.endswith("/preupload/main"):
            paths = [file["path"] for file in json.loads(body)["files"]]
            self._send({"files": [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in paths]})
        elif re.fullmatch(r"/api/datasets/owner/name/commit/main(\?.*)?", self.path):
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            url = f"http://{self.headers['Host']}/datasets/owner/name/commit/{'a' * 40}"
            self._send({"commitUrl": url, "commitOid": "a" * 40, "success": True})
        else:
            self._send({"error": f"this hub does not know {self.path}"}, 404)

    def do_GET(self) -> None:
        self._send({"error": f"this hub does not know {self.path}"}, 404)

    def _send(self, value: object, status: int = 200) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@contextmanager
def hub() -> Iterator[tuple[str, type[Handler]]]:
    kind = type("OfThisHub", (Handler,), {"made": [], "files": {}})
    server = ThreadingHTTPServer(("127.0.0.1", 0), kind)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", kind
    finally:
        server.shutdown()
        server.server_close()
        thread.join(timeout=10)


def test_every_file_of_the_folder_is_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(
        constants, "HF_HUB_OFFLINE", False
    )  # which a machine without a network, or another test, may set
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train-00000.parquet").write_bytes(b"rows")
    (tmp_path / "README.md").write_text("a card")
    whole = tree(tmp_path)
    (tmp_path / MARK).write_text("not ended before it is on the hub")
    with hub() as (endpoint, found):
        said = push_dataset(str(tmp_path), "owner/name", endpoint)
    assert said == f"pushed to owner/name at {'a' * 40}"
    assert found.made == ["dataset owner/name"]
    assert found.files == whole


@pytest.mark.parametrize(
    ("destination", "name", "said"),
    [
        ("x", "name", "must be owner/name"),
        ("x", "a/b/c", "must be owner/name"),
        ("s3://bucket/x", "a/b", "needs a DEST on this machine"),
    ],
)
def test_what_cannot_be_pushed_is_refused(destination: str, name: str, said: str) -> None:
    with pytest.raises(Refused, match=said):
        check_push(destination, name)
