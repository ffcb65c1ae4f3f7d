"""One load of a real model on a real Ray answers all its cells, however their tokens are drawn."""

import json
import uuid
from functools import partial
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline.engine.engine import Engine
from pipeline.sources.reader import unit_reader
from pipeline.stages.engine_settings import load_engine
from pipeline.stages.generate import Generate
from pipeline.stages.preprocess import Preprocess
from pipeline.sweep.plan import PlannedCell, plan_sweep
from pipeline.sweep.sweep import run_sweep
from schemas.job import JobSettings
from tests.sweep.quiz import QUIZ, quiz_settings

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300), pytest.mark.usefixtures("cluster")]

WAYS = {
    "greedy": {},
    "drawn": {"temperature": 1.5, "seed": 3},
    "short": {"max_new_tokens": 2},
    "looping": {"repetition_penalty": 0.2},
    "stops": {"stop": ["M", ";", "k"]},
}


def load_counted(folder: Path, settings: JobSettings) -> Engine:
    """The real engine; every load leaves a file."""
    (folder / uuid.uuid4().hex).touch()
    return load_engine(settings)


def answered(cell: PlannedCell) -> dict[str, tuple[str, str]]:
    tables = (pq.read_table(path) for path in Path(cell.plan.settings.output).glob("answers/*.parquet"))
    return {row["id"]: (row["text"], row["finish_reason"]) for table in tables for row in table.to_pylist()}


def answered_alone(cell: PlannedCell) -> dict[str, tuple[str, str]]:
    """By an engine of the cell's own in this process."""
    settings, listing = cell.plan.settings, cell.plan.listing
    preprocess, generate = Preprocess(settings), Generate(settings, load_engine)
    tables = (generate(preprocess(unit_reader(listing)(unit))) for unit in range(listing.num_units))
    return {row["id"]: (row["text"], row["finish_reason"]) for table in tables for row in table.to_pylist()}


@pytest.mark.soak
def test_cells_that_are_drawn_otherwise_share_one_load_and_are_answered_as_alone(tmp_path: Path) -> None:
    loads = tmp_path / "loads"
    loads.mkdir()
    job = {"unit_rows": 3, "gpus": 0, "preprocess_workers": 1, "max_new_tokens": 12, "dtype": "float32"}
    benchmarks = {"quiz": {"data": "5"}, "more": {"benchmark": "quiz", "data": "7"}}
    settings = quiz_settings(tmp_path / "out", settings=WAYS, benchmarks=benchmarks, job=job)
    plan = plan_sweep(settings, [QUIZ])
    assert "to answer with 1 loaded engines" in plan.describe()
    assert run_sweep(plan, partial(load_counted, loads)).complete == 2 * len(WAYS)
    assert len(list(loads.iterdir())) == 1
    answers = {cell.cell.name.settings: answered(cell) for cell in plan.cells if cell.cell.name.benchmark == "more"}
    assert len({tuple(sorted(some.items())) for some in answers.values()}) == len(WAYS)
    for cell in plan.cells:
        assert answered(cell) == answered_alone(cell), cell.cell.name
        run = json.loads((Path(cell.plan.settings.output) / ".run" / "run.json").read_text())
        assert run["data"] == cell.cell.asking.origin()
