import json
import os
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path

import pytest
from fsspec.config import conf

from jobs.__main__ import main
from pipeline.storage.options import given_options, use_options
from schemas.errors import Refused


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    environment, options = dict(os.environ), deepcopy(conf)
    yield
    os.environ.clear()
    os.environ.update(environment)
    conf.clear()
    conf.update(options)


def test_options_are_given_to_fsspec_here_and_in_other_processes() -> None:
    os.environ["FSSPEC_S3"] = '{"key": "mine", "anon": false}'
    use_options(["s3.endpoint_url=http://127.0.0.1:9", "s3.anon=true", "gs.project=p", 's3.config_kwargs={"a": 1}'])
    assert conf["s3"] == conf["s3a"] == {"endpoint_url": "http://127.0.0.1:9", "anon": True, "config_kwargs": {"a": 1}}
    assert json.loads(os.environ["FSSPEC_S3"]) == {"key": "mine", **conf["s3"]}
    assert json.loads(given_options()["FSSPEC_S3"]) == conf["s3"]  # without the key
    assert json.loads(given_options()["FSSPEC_GCS"]) == {"project": "p"}


def test_nothing_is_given_where_nothing_was() -> None:
    assert given_options() == {}


@pytest.mark.parametrize(
    ("option", "rule"),
    [
        ("endpoint_url=http://a", "must be STORE.NAME=VALUE"),
        ("s3.endpoint_url", "must be STORE.NAME=VALUE"),
        ("s4.anon=true", "must begin with one of s3, gs, az"),
        ("s3.key=SECRET", "must not hold a key"),
        ("s3.secret=SECRET", "must not hold a key"),
        ("s3.token=SECRET", "must not hold a key"),
        ("gs.token=SECRET", "must not hold a key"),
        ("az.account_key=SECRET", "must not hold a key"),
        ("az.connection_string=SECRET", "must not hold a key"),
        ("az.sas_token=SECRET", "must not hold a key"),
        ('s3.client_kwargs={"aws_secret_access_key": "SECRET"}', "must not hold a key"),
        ("s3.endpoint_url=http://user:SECRET@host", "must not hold a user or password"),
    ],
)
def test_what_is_no_option_is_refused_and_no_key_is_said(option: str, rule: str) -> None:
    with pytest.raises(Refused, match=rule) as caught:
        use_options([option])
    assert "SECRET" not in str(caught.value)


def test_a_command_takes_options_of_stores(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--storage-option", "s3.key=SECRET", "verify", "s3://b/out"]) == 2
    assert main(["verify", "s3://b/out", "--storage-option", "s3.secret=SECRET"]) == 2
    said = capsys.readouterr().err
    assert said.count("--storage-option s3.") == 2
    assert "SECRET" not in said


@pytest.mark.parametrize("command", ["caption", "verify", "sweep"])
def test_a_file_of_settings_says_them_too_and_flags_add_to_it(tmp_path: Path, command: str) -> None:
    config = tmp_path / "job.yaml"
    config.write_text("storage-option: [s3.anon=true, s3.endpoint_url=http://127.0.0.1:9]\n")
    assert main([command, "--config", str(config), "--storage-option", "s3.endpoint_url=http://127.0.0.1:8"]) == 2
    assert conf["s3"] == {"anon": True, "endpoint_url": "http://127.0.0.1:8"}


@pytest.mark.parametrize(
    ("line", "said"),
    [("storage_option: s3.key=SECRET", "must not hold a key"), ("storage_option: 3", "line 1: storage_option: ")],
)
def test_what_a_file_says_of_stores_is_refused_alike(tmp_path: Path, line: str, said: str, capsys) -> None:
    config = tmp_path / "job.yaml"
    config.write_text(line)
    assert main(["verify", "out", "--config", str(config)]) == 2
    shown = capsys.readouterr().err
    assert said in shown
    assert "SECRET" not in shown
