"""A job is submitted to a cluster with a dashboard."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.inputs import good_row, write_parquet
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


def submit(head: Head, *job: str, flags: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """`llava-batch submit` as docs/clusters.md shows it."""
    wait_until_up(head)
    command = [sys.executable, "-m", "jobs", "submit", "--address", head.address, *flags, *job]
    return subprocess.run(
        command, cwd=ROOT, env=head.environment, capture_output=True, text=True, timeout=240, check=False
    )


def wait_until_up(head: Head) -> None:
    command = ["ray", "job", "list", "--address", head.address]
    for _ in range(30):
        if subprocess.run(command, env=head.environment, capture_output=True, check=False, timeout=60).returncode == 0:
            return
    raise RuntimeError(f"the dashboard did not answer at {head.address}")


@pytest.mark.ray
@pytest.mark.soak
@pytest.mark.timeout(400)
def test_a_submitted_job_writes_its_answers_and_gives_its_exit_status(head: Head, tmp_path: Path) -> None:
    source = write_parquet(tmp_path / "in.parquet", [good_row(i) for i in range(10)])
    common = ["caption", "--input", str(source), "--model", str(checkpoint()), "--max-new-tokens", "3"]
    done = submit(head, *common, "--output", str(tmp_path / "out"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert pq.read_table(tmp_path / "out" / "answers").num_rows == 10
    summaries = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"rows"')]
    assert [summary["ok"] for summary in summaries] == [10]
    refused = submit(head, *common, "--output", str(tmp_path / "out2"), "--temperature", "-1")
    assert refused.returncode == 2
    assert "--temperature: input should be greater than or equal to 0" in refused.stderr
    assert submit(head, *common, "--output", str(tmp_path / "out"), flags=("--stop",)).returncode == 1  # it has ended


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
        done = submit(head, *common, "--output", str(tmp_path / "out"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert pq.read_table(tmp_path / "out" / "answers").num_rows == 2
