"""The cluster goes away under a running job: SIGKILL of its head or raylet, on a Ray that the test has started."""

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest

from pipeline.verify import verify_run
from tests.execution.test_cluster import free_port, plain_environment
from tests.faults.scene import Scene

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]
SAID_S = 50  # Ray itself ends its driver after 60 s, without a word
LOST = {"gcs_server": "the cluster is lost: its head (gcs_server) at ", "raylet": "the cluster is lost: "}


@contextmanager
def head(port: int, folder: Path) -> Iterator[psutil.Process]:
    """A head without a dashboard in a process group of its own, which is all that is stopped."""
    command = ["ray", "start", "--head", "--block", "--num-cpus=4", "--object-store-memory=200000000"]
    command += ["--include-dashboard=false", "--disable-usage-stats", f"--port={port}", f"--temp-dir={folder}"]
    command += [f"--ray-client-server-port={free_port()}", "--node-ip-address=127.0.0.1"]
    with (folder / "head.log").open("a") as log:
        environment = plain_environment(RAY_AUTH_MODE="disabled")
        group = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        try:
            yield psutil.Process(group.pid)
        finally:
            stop(group)


def stop(group: subprocess.Popen[bytes]) -> None:
    """End a process group, and what has left it."""
    family = psutil.Process(group.pid).children(recursive=True) if group.poll() is None else []
    with suppress(ProcessLookupError):
        os.killpg(group.pid, signal.SIGKILL)
    group.wait(timeout=20)
    for one in family:
        if one.is_running():  # psutil compares when it was started: never a stranger of the same id
            one.kill()


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder whose path leaves room for the names of sockets."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="lost-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def send(name: str, what: signal.Signals, above: psutil.Process) -> None:
    for one in above.children(recursive=True):
        if one.name() == name:
            one.send_signal(what)
            return
    raise AssertionError(f"no {name} among {[one.name() for one in above.children(recursive=True)]}")


def assert_ended(scene: Scene, run: subprocess.Popen[str], lost: str) -> None:
    """The driver ends, in time and with its own words alone; what is done stays."""
    assert run.wait(timeout=SAID_S) == 1, scene.log()
    lines = [line for line in scene.log().splitlines() if line]
    assert lines[-2].startswith(f"error: {lost}"), scene.log()
    assert lines[-1] == "What is done stays; run the same command again to go on."
    known = ("resuming: ", "answers", "loading the model", "waiting for", "error: ", "What is done stays", "has died")
    assert [line for line in lines if not any(word in line for word in known)] == []
    assert not (scene.output / ".run" / "driver.lock").exists()
    assert scene.units()


@pytest.mark.soak
@pytest.mark.parametrize(
    ("name", "what"),
    [("gcs_server", signal.SIGKILL), ("gcs_server", signal.SIGSTOP), ("raylet", signal.SIGKILL)],
)
def test_a_lost_cluster_ends_its_driver_and_the_same_command_goes_on(
    tmp_path: Path, short: Path, name: str, what: signal.Signals
) -> None:
    port = free_port()
    scene = Scene(folder=tmp_path, rows=800, address=f"127.0.0.1:{port}")
    with head(port, short) as group, scene.driver("--wait", "100") as run:
        assert scene.wait_for(lambda: len(scene.units()) >= 2, run)
        run.kill()  # the first came when its cluster did; this one does not wait
        run.wait()
        done = len(scene.units())
        with scene.driver() as run:
            assert scene.wait_for(lambda: len(scene.units()) > done, run)
            send(name, what, group)
            assert_ended(scene, run, LOST[name])


@pytest.mark.soak
@pytest.mark.parametrize("name", ["gcs_server", "raylet"])
def test_a_lost_ray_of_the_drivers_own_ends_it_alike(tmp_path: Path, name: str) -> None:
    scene = Scene(folder=tmp_path, rows=800)
    with scene.driver() as run:
        assert scene.wait_for(lambda: len(scene.units()) >= 2, run)
        send(name, signal.SIGKILL, psutil.Process(run.pid))
        assert_ended(scene, run, LOST[name])


# Ray's own code ends the driver then, with status 1: nothing of ours can run in it any more.
@pytest.mark.soak
def test_a_raylet_that_ends_in_order_takes_its_driver_along_and_that_is_said(tmp_path: Path) -> None:
    scene = Scene(folder=tmp_path)
    with scene.driver() as run:
        assert scene.wait_for(lambda: len(scene.units()) >= 2, run)
        send("raylet", signal.SIGTERM, psutil.Process(run.pid))
        assert run.wait(timeout=SAID_S) == 1, scene.log()
    lines = scene.log().splitlines()
    assert lines[-2].startswith(f"error: the driver (process {run.pid}) has ended in the middle"), scene.log()
    assert lines[-1] == "What is done stays; run the same command again to go on."
    scene.finish()
    assert "units are done" in scene.log()


@pytest.mark.soak
def test_a_head_that_is_stopped_is_lost_as_one_that_is_gone(tmp_path: Path) -> None:
    scene = Scene(folder=tmp_path, rows=800)
    with scene.driver() as run:
        assert scene.wait_for(lambda: len(scene.units()) >= 2, run)
        family = psutil.Process(run.pid).children(recursive=True)
        (one,) = [process for process in family if process.name() == "gcs_server"]
        one.suspend()
        assert_ended(scene, run, LOST["gcs_server"])
        assert psutil.wait_procs([one], timeout=60)[1] == []  # though it could not end by itself


@pytest.mark.soak
def test_a_cluster_that_is_lost_under_a_sweep_ends_it_and_the_same_command_goes_on(tmp_path: Path) -> None:
    scene = Scene(folder=tmp_path, program="tests.faults.sweep_driver")
    with scene.driver() as run:
        assert scene.wait_for(lambda: len(scene.units()) >= 2, run)
        send("gcs_server", signal.SIGKILL, psutil.Process(run.pid))
        assert_ended(scene, run, LOST["gcs_server"])
    with scene.driver() as run:
        assert run.wait(timeout=300) == 0, scene.log()
    (cell,) = scene.output.glob("cells/*/*/*/*/.run/manifest.json")
    assert verify_run(str(cell.parent)) == []
    assert pq.read_table(scene.output / "results.parquet")["status"].to_pylist() == ["complete"]


@pytest.mark.soak
def test_a_driver_that_waits_goes_on_once_its_cluster_is_back(tmp_path: Path, short: Path) -> None:
    port = free_port()
    scene = Scene(folder=tmp_path, rows=400, address=f"127.0.0.1:{port}")
    with scene.driver("--wait", "200") as run:
        with head(port, short):
            assert scene.wait_for(lambda: len(scene.units()) >= 2, run)
        assert scene.wait_for(lambda: "waiting up to 200 s for it" in scene.log(), run)
        time.sleep(5)
        with head(port, short):
            assert run.wait(timeout=300) == 0, scene.log()
    assert "units are done" in scene.log()
    scene.assert_whole()
