"""Units that are found broken when they are merged are answered again, but not for ever; without Ray."""

import io
from pathlib import Path

import pytest

from pipeline.execution.executor import ROUNDS
from pipeline.execution.progress import Progress, UnitReport
from pipeline.execution.ray_errors import RunFailed
from pipeline.job import answer_and_merge
from pipeline.plan import Plan
from pipeline.run_folder.run import read_run
from pipeline.run_folder.units import Counts, unit_path
from pipeline.verify import verify_run
from schemas.engine import EngineStatistics
from tests.test_verify import run_without_ray


class Torn:
    """Answers a unit as a worker would that writes it torn so many times."""

    def __init__(self, plan: Plan, times: int) -> None:
        self.asked: list[list[int]] = []
        self._times, self._path = times, Path(unit_path(plan.settings.output, 1))
        self._whole = self._path.read_bytes()
        self._path.unlink()

    def __call__(self, units: list[int]) -> Progress:
        self.asked.append(units)
        self._path.write_bytes(self._whole[:-9] if len(self.asked) <= self._times else self._whole)
        progress = Progress(total_rows=8, out=io.StringIO())
        progress.add(UnitReport(counts=Counts(rows=8), worker="w", engine=EngineStatistics(num_rows=8)))
        return progress


def no_check() -> None:
    """The lock is held."""


def test_a_broken_unit_is_answered_again(tmp_path: Path) -> None:
    plan = run_without_ray(tmp_path, finish=False)
    run, torn = read_run(plan.settings.output), Torn(plan, 1)
    assert run is not None
    manifest, progress = answer_and_merge(plan, run, torn, no_check)
    assert torn.asked == [[1], [1]]
    assert manifest["rows"] == 20
    assert manifest["timings"]["engine"]["num_rows"] == 16  # of both rounds
    assert progress is not None
    assert verify_run(plan.settings.output) == []


def test_a_storage_that_breaks_every_unit_ends_the_run(tmp_path: Path) -> None:
    plan = run_without_ray(tmp_path, finish=False)
    run, torn = read_run(plan.settings.output), Torn(plan, ROUNDS)
    assert run is not None
    with pytest.raises(RunFailed, match=r"units were broken 3 times in a row: is the storage of .*out sound\?"):
        answer_and_merge(plan, run, torn, no_check)
    assert torn.asked == [[1]] * ROUNDS
