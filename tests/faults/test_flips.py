"""One flipped bit anywhere in a run folder ends in right answers or in a refusal that names the file; without Ray."""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.execution.progress import Progress
from pipeline.job import answer_and_merge, begin
from pipeline.plan import Plan, find_complete
from pipeline.run_folder.lock import NAME, Timing, hold, this_machine
from pipeline.run_folder.merge import finish_run
from pipeline.run_folder.run import read_run
from pipeline.run_folder.units import read_unit_answers, write_unit
from pipeline.stages.preprocess import Preprocess
from pipeline.verify import verify_run
from schemas.errors import Refused
from schemas.run import STATE
from tests.test_verify import run_without_ray

QUICK = Timing(beat_s=100, stale_s=0.02)
ANSWERS: dict[int, pa.Table] = {}  # by unit


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanOnce(Plan):
    """A plan that does not read all of our own code anew for each flipped bit."""

    described: dict[str, Any]

    def describe(self) -> dict[str, Any]:
        return self.described


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """A folder, whole, in memory; and the command that works on it."""

    plan: Plan
    model: dict[str, object]
    files: dict[Path, bytes]

    def put_back(self) -> None:
        for path in Path(self.plan.settings.output).rglob("*"):
            if path.is_file() and path not in self.files:
                path.unlink()
        for path, data in self.files.items():
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(data)

    def run(self) -> None:
        """What the command does once it has its plan, but that its answers come from here instead of from a cluster."""
        if find_complete(self.plan) is not None:
            return
        folder = self.plan.settings.output
        with hold(folder, QUICK) as lock:
            if find_complete(self.plan, held=True) is not None:
                return
            run = begin(self.plan, self.model, continue_with_changes=False)

            def answer(units: list[int]) -> Progress:
                for unit in units:
                    write_unit(folder, run["run"], unit, ANSWERS[unit])
                return Progress(total_rows=0)

            answer_and_merge(self.plan, run, answer, lock.confirm)

    def answers(self) -> pa.Table:
        return pq.read_table(f"{self.plan.settings.output}/answers")


def read_files(folder: str) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Scene]:
    """A folder whose driver was killed with all of its units done, and a complete one."""
    plan = run_without_ray(tmp_path_factory.mktemp("flips"), finish=False)
    named = {
        "job": plan.job,
        "settings": plan.settings,
        "listing": plan.listing,
        "model": plan.model,
        "answer_schema": plan.answer_schema,
    }
    plan = PlanOnce(**named, described=plan.describe())
    folder, run = plan.settings.output, read_run(plan.settings.output)
    assert run is not None
    units = plan.units(run["run"])
    ANSWERS.update({unit: read_unit_answers(folder, run["run"], unit, units.answers_of(unit)) for unit in range(3)})
    dead = {"token": "t", "host": "h", "machine": this_machine(), "pid": 2**22 + 1, "pid_started": "7", "beat": 3}
    Path(folder, STATE, NAME).write_text(json.dumps(dead))
    model = Preprocess(plan.settings).preprocessor.describe()
    stopped = Scene(plan=plan, model=model, files=read_files(folder))
    Path(folder, STATE, NAME).unlink()
    finish_run(units, run["fingerprint"], {})
    return {"stopped": stopped, "complete": Scene(plan=plan, model=model, files=read_files(folder))}


def flips(scene: Scene, name: str, count: int, draw: random.Random) -> Iterator[tuple[Path, bytes]]:
    """Files of this name with one bit of theirs flipped."""
    paths = sorted(path for path in scene.files if path.match(name))
    for _ in range(count):
        path = draw.choice(paths)
        data = bytearray(scene.files[path])
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        yield path, bytes(data)


def outcome_of(scene: Scene, path: Path, data: bytes) -> str:
    """`right`, or the refusal of the command and then of verify."""
    scene.put_back()
    path.write_bytes(data)
    try:
        scene.run()
        problems = verify_run(scene.plan.settings.output)
    except Refused as error:
        return str(error)
    right = pa.concat_tables(ANSWERS[unit] for unit in sorted(ANSWERS))
    return "right" if problems == [] and scene.answers().equals(right) else f"WRONG: {problems}"


def assert_right_or_named(scene: Scene, name: str, count: int, draw: random.Random) -> None:
    for path, data in flips(scene, name, count, draw):
        said = outcome_of(scene, path, data)
        place = next(i for i, byte in enumerate(data) if byte != scene.files[path][i])
        assert said == "right" or path.name in said.split("\n")[0], f"{path} byte {place}: {said}"
        if said != "right":  # nothing has come of it: as soon as the file is back all is right
            path.write_bytes(scene.files[path])
            scene.run()
            assert verify_run(scene.plan.settings.output) == []


KINDS = [
    ("stopped", "unit-*.parquet", 1600),
    ("complete", "part-*.parquet", 1600),
    ("complete", ".run/manifest.json", 500),
    ("complete", ".run/run.json", 500),
    ("stopped", ".run/run.json", 500),
    ("stopped", f"{STATE}/{NAME}", 300),
]


@pytest.mark.parametrize(("state", "name", "count"), [(state, name, 3) for state, name, _ in KINDS])
def test_a_flipped_bit_is_found(
    scenes: dict[str, Scene], state: str, name: str, count: int, draw: random.Random
) -> None:
    assert_right_or_named(scenes[state], name, count, draw)


@pytest.mark.soak
@pytest.mark.timeout(6000)
@pytest.mark.parametrize(("state", "name", "count"), KINDS)
def test_five_thousand_flipped_bits_are_found(
    scenes: dict[str, Scene], state: str, name: str, count: int, draw: random.Random
) -> None:
    assert_right_or_named(scenes[state], name, count, draw)
