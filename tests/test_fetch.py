import base64
import os
from pathlib import Path

import pytest

from pipeline import storage
from pipeline.fetch import fetch
from schemas.errors import Failure, RowError

pytest_plugins = ["tests.object_store"]

LIMIT = 1000


@pytest.fixture(params=["local", "file", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    match request.param:
        case "local":
            return str(tmp_path)
        case "file":
            return f"file://{tmp_path}"
        case _:
            return request.getfixturevalue("bucket")


def failure_of(uri: str, max_bytes: int = LIMIT) -> Failure:
    with pytest.raises(RowError) as caught:
        fetch(uri, max_bytes)
    assert caught.value.failure.stage == "fetch"
    return caught.value.failure


def test_the_bytes_of_a_uri_are_fetched_up_to_the_limit(root: str) -> None:
    uri = storage.join(root, "a b#1%20::é.jpg")
    storage.write_atomic(uri, b"x" * LIMIT)
    assert fetch(uri, LIMIT) == b"x" * LIMIT


def test_one_byte_too_many_is_too_large(root: str) -> None:
    uri = storage.join(root, "a.jpg")
    storage.write_atomic(uri, b"x" * (LIMIT + 1))
    failure = failure_of(uri)
    assert failure.type == "TooLarge"
    assert "at most 1000 bytes" in failure.message
    assert "--max-image-bytes" in failure.message


def test_an_empty_file_says_so(root: str) -> None:
    uri = storage.join(root, "a.jpg")
    storage.write_atomic(uri, b"")
    assert failure_of(uri).type == "EmptyFile"


def test_a_missing_file_is_named(root: str) -> None:
    failure = failure_of(storage.join(root, "none.jpg"))
    assert failure.type == "FileNotFound"
    assert "none.jpg" in failure.message


def test_a_missing_bucket_is_not_found(store: str) -> None:
    assert failure_of("s3://no-such-bucket/a.jpg").type == "FileNotFound"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_permission_denied(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"x")
    (tmp_path / "a.jpg").chmod(0)
    assert failure_of(str(tmp_path / "a.jpg")).type == "PermissionDenied"


@pytest.mark.parametrize("uri", ["http://127.0.0.1/a.jpg", "HTTPS://a/b.jpg", "ftp://a/b"])
def test_other_schemes_are_refused(uri: str) -> None:
    assert failure_of(uri).type == "UnsupportedScheme"


def test_a_chain_of_filesystems_is_a_local_path_like_any_other(store: str) -> None:
    assert failure_of("simplecache::s3://bucket/a.jpg").type == "FileNotFound"
    assert failure_of("s3://bucket/a::http://127.0.0.1/a.jpg").type == "FileNotFound"


def test_a_scheme_without_its_package_says_what_to_install() -> None:
    failure = failure_of("az://b/a.jpg")
    assert failure.type == "UnsupportedScheme"
    assert "pip install adlfs" in failure.message


@pytest.mark.parametrize("name", ["", "a\0b.jpg", "x" * 300 + ".jpg"])
def test_what_is_no_file_fails_and_harms_nobody(tmp_path: Path, name: str) -> None:
    assert failure_of(f"{tmp_path}/{name}").type == "FetchFailed"


@pytest.mark.parametrize(
    ("uri", "data"),
    [
        pytest.param("data:image/png;base64," + base64.b64encode(b"\x89PNG").decode(), b"\x89PNG", id="base64"),
        pytest.param("DATA:image/png;BASE64,iVBORw%3D%3D", b"\x89PNG", id="escaped padding"),
        pytest.param("data:,%89PNG", b"\x89PNG", id="percent"),
    ],
)
def test_a_data_uri_carries_its_own_bytes(uri: str, data: bytes) -> None:
    assert fetch(uri, LIMIT) == data


@pytest.mark.parametrize(
    ("uri", "type"),
    [
        pytest.param("data:image/png;base64", "FetchFailed", id="no comma"),
        pytest.param("data:image/png;base64,@@@@", "FetchFailed", id="not base64"),
        pytest.param("data:image/png;base64," + "A" * 4000, "TooLarge", id="long base64"),
        pytest.param("data:," + "A" * 1001, "TooLarge", id="long text"),
        pytest.param("data:,", "EmptyFile", id="empty"),
    ],
)
def test_a_bad_data_uri_is_named_in_short(uri: str, type: str) -> None:
    failure = failure_of(uri)
    assert failure.type == type
    assert len(failure.message) < 500
