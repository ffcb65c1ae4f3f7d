"""Machines come and go under a running job: raylets of this machine, with numbers for GPUs, added and killed."""

import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from ray.cluster_utils import Cluster

from tests.faults.scene import Scene

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]
SMALL: dict[str, Any] = {"object_store_memory": 150 * 2**20, "include_dashboard": False}
SILENT_S = 90
STUCK_S = 300


class Nodes:
    """A cluster whose head only keeps watch, and GPU machines."""

    def __init__(self) -> None:
        self._cluster = started(lambda: Cluster(initialize_head=True, head_node_args={"num_cpus": 1, **SMALL}))
        self.there: list[tuple[Any, int]] = []  # with the number of their GPUs

    @property
    def address(self) -> str:
        return str(self._cluster.address)

    def add(self, cpus: int = 1, gpus: int = 1) -> None:
        self.there.append((started(lambda: self._cluster.add_node(num_cpus=cpus, num_gpus=gpus, **SMALL)), gpus))

    def kill(self, number: int) -> None:
        self._cluster.remove_node(self.there.pop(number)[0], allow_graceful=False)

    def num_gpus(self) -> int:
        return sum(gpus for _, gpus in self.there)

    def close(self) -> None:
        for node in [*(node for node, _ in self.there), self._cluster.head_node]:
            node.kill_all_processes(check_alive=False, allow_graceful=False)


def started(start: Callable[[], Any]) -> Any:
    """What is started; Ray gives its own processes 30 s, which a busy machine may take longer for."""
    for tries_left in (2, 1, 0):
        try:
            return start()
        except Exception as error:
            if not tries_left or "timed out during startup" not in str(error):
                raise
    raise AssertionError("unreachable")


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Nodes]:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_health_check_period_ms", "1000")  # that a machine is gone is noticed before all is done
    monkeypatch.setenv("RAY_health_check_failure_threshold", "3")
    nodes = Nodes()
    try:
        yield nodes
    finally:
        nodes.close()
        os.environ.pop("RAY_ADDRESS", None)


@contextmanager
def job(nodes: Nodes, folder: Path, rows: int, *settings: str) -> Iterator[tuple[Scene, Any]]:
    scene = Scene(folder=folder, rows=rows, address=nodes.address, program="tests.faults.nodes_driver")
    with scene.driver(*settings) as run:
        yield scene, run


def watch(scene: Scene, run: Any, until: Any) -> None:
    """Wait, as long as units come, and meanwhile something is said."""
    units, said = 0, 0
    came, heard = time.monotonic(), time.monotonic()
    while not until() and run.poll() is None:
        now = time.monotonic()
        if len(scene.units()) != units:
            units, came = len(scene.units()), now
        if len(scene.log()) != said:
            said, heard = len(scene.log()), now
        assert now - came < STUCK_S, f"no unit for {STUCK_S} s:\n{scene.log()}"
        assert now - max(came, heard) < SILENT_S, f"silent for {SILENT_S} s:\n{scene.log()}"
        time.sleep(0.1)


def assert_good_end(scene: Scene, run: Any) -> None:
    watch(scene, run, lambda: False)
    assert run.returncode == 0, scene.log()
    scene.assert_whole()
    strange = [line for line in scene.log().splitlines() if any(word in line for word in STRANGE)]
    assert strange == []


STRANGE = ("Traceback", "WARNING", "ERROR", "raylet", "worker.py", "(pid=", "RayActorError")


# The quick half of the next: a minute alone on a machine.
def test_a_machine_that_joins_works_and_one_that_is_killed_costs_nothing(
    nodes: Nodes, tmp_path: Path, draw: random.Random
) -> None:
    nodes.add(cpus=2)
    with job(nodes, tmp_path, 640) as (scene, run):
        watch(scene, run, lambda: len(scene.units()) >= 2)
        nodes.add()
        time.sleep(draw.uniform(0, 3))
        nodes.kill(0)
        assert_good_end(scene, run)
    assert len(scene.workers("generate")) == 2
    assert "has joined" in scene.log()
    assert "is gone; what it was at is done elsewhere" in scene.log()


@pytest.mark.soak
def test_machines_come_and_go_all_the_time(nodes: Nodes, tmp_path: Path, draw: random.Random) -> None:
    nodes.add(cpus=2)
    nodes.add(cpus=2)
    nodes.add(cpus=2, gpus=0)
    with job(nodes, tmp_path, 4000) as (scene, run):
        watch(scene, run, lambda: len(scene.units()) >= 4)
        for _ in range(6):
            done = len(scene.units())
            watch(scene, run, lambda done=done: len(scene.units()) >= done + draw.randrange(1, 40))
            if draw.random() < 0.5 or len(nodes.there) < 2:
                nodes.add(cpus=draw.randrange(1, 3), gpus=draw.randrange(2))
            else:
                nodes.kill(draw.randrange(len(nodes.there)))
            if not nodes.num_gpus():  # no unit would come
                nodes.add()
        nodes.add()
        assert_good_end(scene, run)


@pytest.mark.soak
@pytest.mark.parametrize(("settings", "fewest", "most"), [((), 1, 2), (("slow_preprocess=1",), 3, 5)])
def test_preprocessing_grows_until_the_engines_are_fed_and_no_further(
    nodes: Nodes, tmp_path: Path, settings: tuple[str, ...], fewest: int, most: int
) -> None:
    nodes.add(cpus=4)
    with job(nodes, tmp_path, 480, *settings) as (scene, run):
        assert_good_end(scene, run)
    assert "1 preprocessing actor to begin with, 1 GPU" in scene.log()
    assert fewest <= len(scene.workers("preprocess")) <= most
