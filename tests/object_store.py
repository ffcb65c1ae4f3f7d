"""An S3 server of this machine for tests: fixtures `store` (one a session) and `bucket` (a fresh one a test).

A test module says `pytest_plugins = ["tests.object_store"]`.
"""

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from s3fs import S3FileSystem

START_S = 60


@pytest.fixture(scope="session")
def store() -> Iterator[str]:
    """The endpoint of an empty S3 store that this process and its children find in the environment."""
    with s3_server() as endpoint, s3_environment(endpoint):
        yield endpoint
        S3FileSystem.clear_instance_cache()  # nobody may meet a client of the store that is gone


@pytest.fixture
def bucket(store: str) -> str:
    """The url of a new, empty bucket."""
    name = f"test-{uuid.uuid4().hex[:12]}"
    S3FileSystem().mkdir(name)
    return f"s3://{name}"


@contextmanager
def s3_server() -> Iterator[str]:
    port = _free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    endpoint = f"http://127.0.0.1:{port}"
    try:
        _wait_until_up(server, endpoint)
        yield endpoint
    finally:
        server.kill()  # all that it holds is in memory
        server.wait()


@contextmanager
def s3_environment(endpoint: str) -> Iterator[None]:
    before = dict(os.environ)
    os.environ |= {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "NO_PROXY": "127.0.0.1",
    }
    os.environ.pop("AWS_PROFILE", None)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def _wait_until_up(server: subprocess.Popen[bytes], endpoint: str) -> None:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise RuntimeError(f"the S3 test server ended with exit status {server.returncode}")
        try:
            direct.open(f"{endpoint}/moto-api/", timeout=5).close()
        except (urllib.error.URLError, TimeoutError):
            time.sleep(0.1)
        else:
            return
    raise RuntimeError(f"the S3 test server did not answer at {endpoint} within {START_S} s")


@pytest.fixture(params=["local", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A folder, once on a disk and once in a store."""
    return str(tmp_path) if request.param == "local" else request.getfixturevalue("bucket")
