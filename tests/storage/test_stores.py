"""Stores by their own clients and servers: what is written is read, what is wrong is said, and keys are not."""

import base64
import json
import os
import re

import pytest
from s3fs import S3FileSystem

from pipeline.sources.fetch import fetch
from pipeline.storage import filesystem as fs
from pipeline.storage.options import use_options
from schemas.errors import RowError

pytest_plugins = ["tests.object_store", "tests.stores"]


def test_what_is_written_is_listed_read_and_deleted(bucket_of: str) -> None:
    for name in ("out/a.bin", "out/b c.bin", "out/[d].bin", "other/e.bin"):
        fs.write_atomic(f"{bucket_of}/{name}", name.encode())
    listed = fs.list_folder(f"{bucket_of}/out")
    names = ["out/[d].bin", "out/a.bin", "out/b c.bin"]
    assert [info.url for info in listed] == [f"{fs.absolute(bucket_of)}/{name}" for name in names]  # az:// is abfs://
    assert all(info.version for info in listed)
    assert fs.read_bytes(f"{bucket_of}/out/[d].bin") == b"out/[d].bin"
    assert fs.read_bytes(f"{bucket_of}/out/a.bin", 3) == b"out"
    with fs.open_url(f"{bucket_of}/out/a.bin") as file:
        file.seek(4)
        assert file.read() == b"a.bin"
    fs.delete(f"{bucket_of}/out")
    assert not fs.exists(f"{bucket_of}/out/a.bin")
    assert fs.read_bytes(f"{bucket_of}/other/e.bin") == b"other/e.bin"


def test_a_file_is_created_once(bucket_of: str) -> None:
    assert fs.create_new(f"{bucket_of}/lock", b"first")
    assert not fs.create_new(f"{bucket_of}/lock", b"second")
    assert fs.read_bytes(f"{bucket_of}/lock") == b"first"


@pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")  # what Azure's client does
def test_fifty_megabytes_come_back_as_they_went(bucket_of: str) -> None:
    data = os.urandom(1_000_000) * 50
    fs.write_atomic(f"{bucket_of}/large.bin", data)
    assert fs.read_bytes(f"{bucket_of}/large.bin") == data


def test_an_object_that_is_gone_is_a_row_error_that_names_it(bucket_of: str) -> None:
    with pytest.raises(RowError, match=r"FileNotFound: .*gone\.jpg is not there"):
        fetch(f"{bucket_of}/gone.jpg", 1000)


def test_an_endpoint_is_named_by_an_option(bucket: str, options: None) -> None:
    endpoint = os.environ.pop("AWS_ENDPOINT_URL")
    use_options([f"s3.endpoint_url={endpoint}"])
    fs.write_atomic(f"{bucket}/a.bin", b"x")
    assert fs.read_bytes(f"{bucket}/a.bin") == b"x"


def test_a_profile_is_named_by_an_option(bucket: str, options: None, tmp_path) -> None:
    endpoint = os.environ["AWS_ENDPOINT_URL"]
    for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        os.environ.pop(name)
    (tmp_path / "config").write_text(
        f"[profile mine]\nendpoint_url = {endpoint}\naws_access_key_id = testing\naws_secret_access_key = testing\n"
    )
    os.environ["AWS_CONFIG_FILE"] = str(tmp_path / "config")
    use_options(["s3.profile=mine"])
    fs.write_atomic(f"{bucket}/a.bin", b"x")
    assert fs.read_bytes(f"{bucket}/a.bin") == b"x"


def test_a_bucket_for_everybody_is_read_without_keys(bucket: str, options: None) -> None:
    fs.write_atomic(f"{bucket}/a.bin", b"x")
    S3FileSystem().chmod(f"{bucket}/a.bin", acl="public-read")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        os.environ.pop(name)
    use_options(["s3.anon=true"])
    assert json.loads(os.environ["FSSPEC_S3"]) == {"anon": True}
    assert fs.read_bytes(f"{bucket}/a.bin") == b"x"


def test_a_private_object_asked_for_without_keys_is_permission_denied(bucket: str, options: None) -> None:
    fs.write_atomic(f"{bucket}/a.jpg", b"x")
    use_options(["s3.anon=true"])
    with pytest.raises(RowError, match=r"PermissionDenied: .*a\.jpg may not be read"):
        fetch(f"{bucket}/a.jpg", 1000)


def test_a_wrong_key_is_an_error_that_does_not_hold_it(azure: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fs.write_atomic(f"{azure}/a.jpg", b"x")
    text, wrong = os.environ["AZURE_STORAGE_CONNECTION_STRING"], base64.b64encode(b"wrong" * 10).decode()
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", re.sub("AccountKey=[^;]*", f"AccountKey={wrong}", text))
    type(fs.remote(azure)[0]).clear_instance_cache()
    with pytest.raises(RowError, match=r"PermissionDenied: .*a\.jpg") as caught:
        fetch(f"{azure}/a.jpg", 1000)
    assert wrong not in str(caught.value)
    with pytest.raises(OSError, match=".") as other:
        fs.list_folder(f"{azure}/out")
    assert wrong not in str(other.value)
