"""Rows that kill their workers, and workers that die while loading, on a real Ray."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline.execution.executor import Loaders
from pipeline.execution.ray_errors import RunFailed
from pipeline.job import run_job
from pipeline.plan import Plan, plan_job
from pipeline.run_folder.run import read_manifest
from schemas.job import JobSettings
from tests.fakes import (
    DeadlyPreprocess,
    StuckPreprocess,
    load_deadly_engine,
    load_echo_engine,
    load_engine_that_dies,
    load_engine_that_raises,
)
from tests.inputs import good_row, write_parquet
from tests.tiny import checkpoint

pytestmark = [pytest.mark.ray, pytest.mark.timeout(480), pytest.mark.usefixtures("cluster")]


def plan_for(folder: Path, deadly: dict[int, str], rows: int = 40, **changes: object) -> Plan:
    """A job of `rows` rows in units of 8, those in `deadly` named after what they kill."""
    table = [good_row(number) for number in range(rows)]
    for number, name in deadly.items():
        table[number]["id"] = f"row-{number}-{name}"
    source = write_parquet(folder / "in.parquet", table)
    base = {"input": (str(source),), "output": str(folder / "out"), "model": str(checkpoint()), "unit_rows": 8}
    settings = JobSettings.model_validate({**base, "max_error_rate": 1.0, "preprocess_workers": 1, **changes})
    return plan_job("caption", settings, "Q?")


def test_rows_that_kill_their_worker_become_errors_and_their_neighbours_are_answered(tmp_path: Path) -> None:
    deadly = {10: "kills-preprocess", 21: "kills-generate", 34: "hangs-generate"}
    plan = plan_for(tmp_path, deadly, step_seconds=3)
    summary = run_job(plan, Loaders(engine=load_deadly_engine, preprocess=DeadlyPreprocess))
    answers = pq.read_table(tmp_path / "out" / "answers").to_pylist()
    failed = {a["id"]: (a["error_stage"], a["error_type"]) for a in answers if a["status"] == "error"}
    assert (summary.rows, summary.errors) == (40, 3)
    assert failed == {
        "row-10-kills-preprocess": ("decode", "WorkerDied"),
        "row-21-kills-generate": ("generate", "WorkerDied"),
        "row-34-hangs-generate": ("generate", "WorkerDied"),
    }
    assert len({a["id"] for a in answers}) == 40
    assert not (tmp_path / "out" / ".run" / "markers").exists()
    manifest = read_manifest(str(tmp_path / "out"))
    assert manifest is not None
    assert manifest["timings"]["engine"]["num_rows"] >= 38  # all lives of the engine together: all rows but the killers
    (left,) = (tmp_path / "out" / ".run" / "errors").glob("generate-StepTimedOut-*.txt")
    assert "took longer than --step-seconds (3 s)" in left.read_text()


def test_a_row_that_holds_its_interpreter_for_ever_is_timed_out_and_its_neighbours_are_answered(tmp_path: Path) -> None:
    plan = plan_for(tmp_path, {10: "gets-stuck"}, rows=16, row_seconds=5)
    summary = run_job(plan, Loaders(engine=load_echo_engine, preprocess=StuckPreprocess))
    answers = pq.read_table(tmp_path / "out" / "answers").to_pylist()
    failed = {a["id"]: (a["error_stage"], a["error_type"]) for a in answers if a["status"] == "error"}
    assert (summary.rows, summary.errors) == (16, 1)
    assert failed == {"row-10-gets-stuck": ("decode", "TimedOut")}


@pytest.mark.soak
def test_an_engine_that_dies_while_loading_ends_the_run_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match="died"):
        run_job(plan_for(tmp_path, {}), load_engine_that_dies)


@pytest.mark.soak
def test_an_engine_that_cannot_be_loaded_ends_the_run_with_what_it_said(tmp_path: Path) -> None:
    plan = plan_for(tmp_path, {})
    with pytest.raises(RunFailed, match="the weights have 3 layers, the config has 2"):
        run_job(plan, load_engine_that_raises)
    assert run_job(plan, load_echo_engine).ok == 40
