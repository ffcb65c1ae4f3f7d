"""Drivers, workers and nodes killed at work, on a real Ray: every row has its answer in the end, once."""

import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import ray
from ray.cluster_utils import Cluster

from pipeline.job import run_job
from pipeline.run_folder.lock import FolderInUse
from pipeline.run_folder.run import RunMismatch
from pipeline.storage import filesystem as fs
from tests.faults.driver import LOADERS, plan_of
from tests.faults.scene import Scene, kill, kill_at_random, killed_when
from tests.inputs import good_row, write_parquet

pytestmark = [pytest.mark.ray, pytest.mark.timeout(1500)]


@pytest.fixture
def scene(tmp_path: Path, cluster: None) -> Scene:
    """Drivers that join this session's Ray."""
    return Scene(folder=tmp_path, address=ray.get_runtime_context().gcs_address)


def test_a_driver_killed_again_and_again_loses_nothing(scene: Scene) -> None:
    for number in (1, 9):
        killed_when(scene, lambda number=number: len(scene.units()) >= number)
    torn = scene.units()[0]
    torn.write_bytes(torn.read_bytes()[:-50])
    killed_when(scene, lambda: (scene.output / "answers").exists())
    scene.finish()
    assert "they are answered again" in scene.log()


@pytest.mark.soak
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_a_driver_within_ten_seconds(scene: Scene, number: int, status: int) -> None:
    with scene.driver() as run:
        assert scene.wait_for(lambda: bool(scene.units()), run)
        run.send_signal(number)
        assert run.wait(timeout=10) == status
    assert "run the same command again to go on" in scene.log()
    assert not (scene.output / ".run" / "driver.lock").exists()
    done = len(scene.units())
    scene.finish()
    assert f"resuming: {done} of 20 units are done" in scene.log()


@pytest.mark.soak
def test_killed_workers_are_replaced_and_lose_nothing(scene: Scene) -> None:
    with scene.driver() as run:
        assert scene.wait_for(lambda: len(scene.units()) >= 2, run)
        kill(scene.workers("generate"))
        kill(scene.workers("preprocess")[:1])
        assert run.wait(timeout=180) == 0, scene.log()
    scene.assert_whole()


@pytest.mark.soak
@pytest.mark.parametrize("title", ["ray::_Feed", "ray::MapBatches(give_out)"])
def test_what_hands_out_units_may_die(tmp_path: Path, cluster: None, title: str) -> None:
    scene = Scene(folder=tmp_path, rows=1600, address=ray.get_runtime_context().gcs_address)
    with scene.driver() as run:
        assert scene.wait_for(lambda: len(scene.units()) >= 2, run)
        found = [one.pid for one in psutil.Process().children(recursive=True) if title in " ".join(one.cmdline())]
        assert len(found) == 1
        kill(found)
        assert run.wait(timeout=300) == 0, scene.log()
    scene.assert_whole()


@pytest.mark.soak
def test_a_worker_that_is_stopped_for_ever_holds_up_nothing(scene: Scene) -> None:
    with scene.driver() as run:
        assert scene.wait_for(lambda: len(scene.units()) >= 2, run)
        os.kill(scene.workers("preprocess")[0], signal.SIGSTOP)
        assert run.wait(timeout=500) == 0, scene.log()
    scene.assert_whole()


@pytest.mark.soak
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
@pytest.mark.parametrize("part", range(3))
def test_a_driver_killed_at_random_moments_loses_nothing(scene: Scene, draw: random.Random, part: int) -> None:
    """Six kills, in as many runs as they last for; between them units are torn."""
    kills = 0
    while kills < 6:
        if kill_at_random(scene, draw):
            kills += 1
            tear_some(scene, draw)
        else:
            scene.finish()
            shutil.rmtree(scene.output)
    scene.finish()


def tear_some(scene: Scene, draw: random.Random) -> None:
    """Leave half of some units' files, as a disk may that lied about its cache."""
    for path in scene.units():
        if draw.random() < 0.1:
            path.write_bytes(path.read_bytes()[: draw.randrange(1000)])


@pytest.mark.soak
def test_workers_killed_at_random_moments_lose_nothing(scene: Scene, draw: random.Random) -> None:
    with scene.driver() as run:
        for _ in range(6):
            before = scene.num_done()
            if not scene.wait_for(lambda before=before: scene.num_done() > before, run):
                break
            time.sleep(draw.uniform(0, 0.5))
            pids = scene.workers(draw.choice(["generate", "preprocess"]))
            kill(draw.sample(pids, draw.randint(1, len(pids))))
        assert run.wait(timeout=300) == 0, scene.log()
    scene.assert_whole()


@pytest.mark.soak
@pytest.mark.parametrize("part", range(2))
def test_drivers_killed_in_an_object_store_lose_nothing(
    tmp_path: Path, cluster: None, bucket: str, draw: random.Random, part: int
) -> None:
    scene = Scene(folder=tmp_path, address=ray.get_runtime_context().gcs_address, store=bucket)
    for _ in range(4):
        kill_at_random(scene, draw)
    torn = fs.join(scene.url, "units", "unit-00000003.parquet")
    if fs.exists(torn):
        fs.write_atomic(torn, fs.read_bytes(torn)[:100])
    scene.finish()


@pytest.mark.soak
def test_a_driver_killed_at_work_in_an_object_store_is_followed(tmp_path: Path, cluster: None, bucket: str) -> None:
    scene = Scene(folder=tmp_path, rows=80, address=ray.get_runtime_context().gcs_address, store=bucket)
    assert killed_when(scene, lambda: scene.num_done() >= 2)
    scene.finish()
    assert "units are done" in scene.log()
