"""Drivers, workers and nodes killed at work, on a real Ray: every row has its answer in the end, once."""

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster

from pipeline.job import run_job
from pipeline.lock import FolderInUse
from pipeline.run import RunMismatch
from tests.faults.driver import LOADERS, plan_of
from tests.faults.scene import Scene, kill
from tests.inputs import good_row, write_parquet

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]


@pytest.fixture
def scene(tmp_path: Path, cluster: None) -> Scene:
    """Drivers that join this session's Ray."""
    return Scene(folder=tmp_path, address=ray.get_runtime_context().gcs_address)


def killed_when(scene: Scene, moment: Callable[[], bool], pause_s: float = 0.0) -> None:
    """One driver, killed at that moment or done before it."""
    with scene.driver() as run:
        if scene.wait_for(moment, run):
            time.sleep(pause_s)
            run.kill()


def test_a_driver_killed_again_and_again_loses_nothing(scene: Scene) -> None:
    for number in (1, 9):
        killed_when(scene, lambda number=number: len(scene.units()) >= number)
    torn = scene.units()[0]
    torn.write_bytes(torn.read_bytes()[:-50])
    killed_when(scene, lambda: (scene.output / "answers").exists())
    scene.finish()
    assert "answering them again" in scene.log()


@pytest.mark.parametrize(
    ("number", "status"), [pytest.param(signal.SIGINT, 130, marks=pytest.mark.soak), (signal.SIGTERM, 143)]
)
def test_a_signal_stops_a_driver_within_ten_seconds(scene: Scene, number: int, status: int) -> None:
    with scene.driver() as run:
        assert scene.wait_for(lambda: bool(scene.units()), run)
        run.send_signal(number)
        assert run.wait(timeout=10) == status
    assert "Run the same command again to go on" in scene.log()
    assert not (scene.output / "driver.lock").exists()
    done = len(scene.units())
    scene.finish()
    assert f"resuming: {done} of 20 units are done" in scene.log()


def test_killed_workers_are_replaced_and_lose_nothing(scene: Scene) -> None:
    with scene.driver() as run:
        assert scene.wait_for(lambda: len(scene.units()) >= 2, run)
        kill(scene.workers("generate"))
        kill(scene.workers("preprocess")[:1])
        assert run.wait(timeout=180) == 0, scene.log()
    scene.assert_whole()


def test_a_second_driver_and_another_prompt_and_another_input_are_refused(scene: Scene) -> None:
    with scene.driver() as run:
        assert scene.wait_for(lambda: bool(scene.units()), run)
        with pytest.raises(FolderInUse, match=f"process {run.pid} on "):
            run_job(plan_of(scene.arguments()), LOADERS)
        run.kill()
        run.wait()
    with pytest.raises(RunMismatch, match=r"prompt: \[\] there, \['Why\?'\] now"):
        run_job(plan_of(scene.arguments("Why?")), LOADERS)
    before = (scene.folder / "in.parquet").read_bytes()
    times = (scene.folder / "in.parquet").stat()
    write_parquet(scene.folder / "in.parquet", [good_row(i + 1) for i in range(scene.rows)])
    with pytest.raises(RunMismatch, match=r"input file changed: .*in\.parquet"):
        run_job(plan_of(scene.arguments()), LOADERS)
    (scene.folder / "in.parquet").write_bytes(before)
    os.utime(scene.folder / "in.parquet", ns=(times.st_atime_ns, times.st_mtime_ns))
    scene.finish()


@pytest.mark.soak
def test_a_full_disk_stops_the_run_and_room_lets_it_go_on(scene: Scene) -> None:
    scene.output.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(scene.output)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a small disk cannot be mounted here")
    try:
        with scene.driver() as run:
            assert run.wait(timeout=120) == 1, scene.log()
        assert "No space left on device" in scene.log()
        subprocess.run(["mount", "-o", "remount,size=16m", str(scene.output)], check=True)
        scene.finish()
    finally:
        subprocess.run(["umount", "-l", str(scene.output)], check=False)


@pytest.fixture
def three_nodes() -> Iterator[Cluster]:
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 3, "object_store_memory": 100 * 2**20})
    for _ in range(2):
        nodes.add_node(num_cpus=4, object_store_memory=100 * 2**20)
    yield nodes
    nodes.shutdown()


@pytest.mark.soak
def test_a_lost_node_loses_nothing(tmp_path: Path, three_nodes: Cluster) -> None:
    scene = Scene(folder=tmp_path, rows=400, address=three_nodes.address)
    with scene.driver() as run:
        assert scene.wait_for(lambda: len(scene.units()) >= 5, run)
        three_nodes.remove_node(next(iter(three_nodes.worker_nodes)), allow_graceful=False)
        three_nodes.add_node(num_cpus=4, object_store_memory=100 * 2**20)
        assert run.wait(timeout=300) == 0, scene.log()
    scene.assert_whole()


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(4))
def test_a_driver_killed_at_random_moments_loses_nothing(scene: Scene, seed: int) -> None:
    draw = random.Random(seed)
    for _ in range(6):
        done = len(scene.units())
        moments = [
            lambda: (scene.output / "run.json").exists(),
            lambda done=done: len(scene.units()) > done,
            lambda: (scene.output / "answers").exists(),
            lambda: (scene.output / "manifest.json").exists(),
        ]
        killed_when(scene, draw.choice(moments[:2] if len(scene.units()) < 15 else moments), draw.uniform(0, 1.5))
    scene.finish()
