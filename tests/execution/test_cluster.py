"""A job is submitted to a cluster with a dashboard."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.inputs import good_row, write_parquet
from tests.proxy import proxied
from tests.tiny import checkpoint

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """A running head node: where jobs are submitted, and the environment that reaches it."""

    address: str
    environment: dict[str, str]


@pytest.fixture
def head(tmp_path: Path) -> Iterator[Head]:
    """A Ray head that asks nobody for a token."""
    with running_head(tmp_path, {"RAY_AUTH_MODE": "disabled"}) as head:
        yield head


def plain_environment(**changes: str) -> dict[str, str]:
    """This process's environment without what it knows of any Ray."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return {**environment, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", **changes}


@contextmanager
def running_head(tmp_path: Path, changes: dict[str, str]) -> Iterator[Head]:
    """A Ray head with a dashboard in a process group of its own, which is all that is stopped at the end."""
    ports = [free_port() for _ in range(4)]
    environment = plain_environment(**changes)
    names = ("--port", "--dashboard-port", "--ray-client-server-port", "--dashboard-agent-listen-port")
    flags = [f"{name}={port}" for name, port in zip(names, ports, strict=True)]
    command = ["ray", "start", "--head", "--block", "--num-cpus=4", "--object-store-memory=200000000", *flags]
    command += ["--dashboard-host=127.0.0.1", "--disable-usage-stats", "--node-ip-address=127.0.0.1"]
    log = (tmp_path / "head.log").open("w")
    group = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        yield Head(address=f"http://127.0.0.1:{ports[1]}", environment=environment)
    finally:
        os.killpg(group.pid, signal.SIGTERM)
        try:
            group.wait(timeout=20)
        except subprocess.TimeoutExpired:
            os.killpg(group.pid, signal.SIGKILL)
            group.wait(timeout=20)
        log.close()


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def submitting(head: Head, *job: str, flags: tuple[str, ...] = (), **environment: str) -> subprocess.Popen[str]:
    """`llava-batch submit` as docs/clusters.md shows it, its log on stdout as well."""
    command = [sys.executable, "-m", "jobs", "submit", "--address", head.address, *flags, *job]
    given = {**head.environment, **environment}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, env=given, stdout=pipe, stderr=subprocess.STDOUT, text=True)


def submit(head: Head, *job: str, flags: tuple[str, ...] = (), **environment: str) -> tuple[int, str]:
    """Its exit status, and what it has said."""
    with submitting(head, *job, flags=flags, **environment) as process:
        said, _ = process.communicate(timeout=240)
        return process.returncode, said


def read_until(process: subprocess.Popen[str], text: str) -> str:
    """What a command says until a line that has this text."""
    assert process.stdout is not None
    said = ""
    for line in process.stdout:
        said += line
        if text in line:
            return said
    raise AssertionError(f"it has not said {text!r}: {said}")


def wait_until_up(head: Head) -> None:
    command = ["ray", "job", "list", "--address", head.address]
    for _ in range(30):
        if subprocess.run(command, env=head.environment, capture_output=True, check=False, timeout=60).returncode == 0:
            return
    raise RuntimeError(f"the dashboard did not answer at {head.address}")


@pytest.mark.ray
@pytest.mark.soak
@pytest.mark.timeout(900)
def test_a_submitted_job_is_followed_left_found_again_and_stopped(head: Head, tmp_path: Path) -> None:
    wait_until_up(head)
    source = write_parquet(tmp_path / "in.parquet", [good_row(i) for i in range(10)])
    model = ["--model", str(checkpoint())]
    common = ["caption", "--input", str(source), *model, "--max-new-tokens", "3", "--output", str(tmp_path / "out")]
    status, said = submit(head, *common, flags=("--env", "NAME=value"), RAY_ADDRESS="http://127.0.0.1:1")
    assert status == 0, said
    assert "with 1.6 MB of code and files" in said
    assert pq.read_table(tmp_path / "out" / "answers").num_rows == 10
    assert json.loads(said.splitlines()[-1])["ok"] == 10

    status, said = submit(head, *common)
    assert (status, json.loads(said.splitlines()[-1])["ok"]) == (0, 10)
    assert "already complete: 10 answers" in said
    assert "loading the model" not in said  # of the first time

    (tmp_path / "broken.png").write_bytes(b"<html>")
    gone = ("--input", str(tmp_path / "gone.parquet"))
    assert submit(head, "caption", *gone, *model, "--output", str(tmp_path / "2"))[0] == 2
    broken = ("--input", str(tmp_path / "broken.png"))
    assert submit(head, "caption", *broken, *model, "--output", str(tmp_path / "1"))[0] == 1
    assert submit(head, *common, flags=("--stop",))[0] == 1  # it has ended

    long = ["caption", "--input", str(source), *model, "--limit", "10", "--max-new-tokens", "600"]
    long += ["--min-new-tokens", "600", "--unit-rows", "1", "--output", str(tmp_path / "long")]
    port = int(head.address.rpartition(":")[2])
    with proxied(port) as proxy:
        away = replace(head, address=f"http://127.0.0.1:{proxy.port}")
        with submitting(away, *long) as first:
            read_until(first, "loading the model")
            first.send_signal(signal.SIGINT)
            assert "detached: " in read_until(first, "the same command follows it again")
        assert first.returncode == 130
        with submitting(away, *long) as second:
            assert " is at work already" in read_until(second, "loading the model")
            proxy.cut()
            read_until(second, "no connection to")
            proxy.mend()
            assert submit(head, *long, flags=("--stop",))[0] == 0
            read_until(second, "stopped; what is done stays")
        assert second.returncode == 130


@pytest.mark.ray
@pytest.mark.soak
@pytest.mark.timeout(900)
@pytest.mark.parametrize("auth", ["off", "on"])
def test_jobs_are_submitted_as_before_on_a_machine_that_has_run_one_of_its_own(auth: str, tmp_path: Path) -> None:
    source = write_parquet(tmp_path / "in.parquet", [good_row(i) for i in range(2)])
    common = ["caption", "--input", str(source), "--model", str(checkpoint()), "--max-new-tokens", "3"]
    home, token = tmp_path / "home", tmp_path / "token"
    home.mkdir()
    token.write_text("0123456789abcdef" * 4, encoding="ascii")
    command = [sys.executable, "-m", "jobs", *common, "--output", str(tmp_path / "own")]
    subprocess.run(command, cwd=ROOT, env=plain_environment(HOME=str(home)), check=True, timeout=300)
    assert not (home / ".ray").exists()
    asked = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)} if auth == "on" else {}
    with running_head(tmp_path, {"HOME": str(home), **asked}) as head:
        wait_until_up(head)
        status, said = submit(head, *common, "--output", str(tmp_path / "out"))
        assert status == 0, said
        assert pq.read_table(tmp_path / "out" / "answers").num_rows == 2
        if auth == "on":
            (tmp_path / "wrong").write_text("fedcba9876543210" * 4, encoding="ascii")
            for wrong in ({"RAY_AUTH_MODE": "disabled"}, {"RAY_AUTH_TOKEN_PATH": str(tmp_path / "wrong")}):
                status, said = submit(head, *common, "--output", str(tmp_path / "out"), **wrong)
                assert (status, said.count("\n")) == (2, 1), said
                assert "the cluster asks for a token" in said
