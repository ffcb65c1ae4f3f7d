"""Whole sweeps on a real Ray: one load an engine, cells that fail alone, time that runs out."""

import time
import uuid
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.execution.executor import Loaders
from pipeline.stages.preprocess import Preprocess
from pipeline.sweep.plan import plan_sweep
from pipeline.sweep.results import Result, table_to_results
from pipeline.sweep.sweep import SweepSummary, run_sweep
from pipeline.verify import verify_run
from schemas.answer import Answer
from schemas.job import JobSettings
from schemas.sample import Sample
from schemas.sweep import SweepSettings
from tests.fakes import EchoEngine
from tests.sweep.quiz import QUIZ, quiz_settings

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300), pytest.mark.usefixtures("cluster")]
TWO_PRECISIONS = {"float32": {"dtype": "float32"}, "bfloat16": {"dtype": "bfloat16"}}
TWO_PROMPTS = {"plain": None, "polite": "Please: {question}"}


def load_noted(folder: Path, settings: JobSettings) -> EchoEngine:
    """An echo engine; every load leaves a file. It does not load in float16."""
    if settings.dtype == "float16":
        raise ValueError("no float16 here")
    (folder / f"{settings.dtype}-{uuid.uuid4().hex}").touch()
    return EchoEngine()


class SlowEcho(EchoEngine):
    def generate(self, samples: Sequence[Sample]) -> Iterator[Answer]:
        time.sleep(0.3)
        yield from super().generate(samples)


def load_slow(settings: JobSettings) -> EchoEngine:
    return SlowEcho()


class NoLongPrompts(Preprocess):
    """Has a bug that ends the run."""

    def __call__(self, table: pa.Table) -> pa.Table:
        if table["prompt"][0].as_py().startswith("Please"):
            raise KeyError("a bug")
        return super().__call__(table)


def sweep(settings: SweepSettings, load) -> SweepSummary:
    return run_sweep(plan_sweep(settings, [QUIZ]), load)


def results_in(folder: Path) -> dict[str, Result]:
    results = table_to_results(pq.read_table(folder / "results.parquet"))
    return {str(one.name): one for one in results if one.headline}


@pytest.fixture
def loads(tmp_path: Path) -> Path:
    folder = tmp_path / "loads"
    folder.mkdir()
    return folder


def loaded(folder: Path) -> list[str]:
    return sorted(path.name.split("-")[0] for path in folder.iterdir())


@pytest.mark.soak
def test_one_load_serves_all_cells_of_an_engine_and_none_where_all_are_complete(tmp_path: Path, loads: Path) -> None:
    out = tmp_path / "out"
    settings = quiz_settings(out, settings=TWO_PRECISIONS, prompts=TWO_PROMPTS)
    summary = sweep(settings, partial(load_noted, loads))
    assert (summary.cells, summary.complete, summary.rows) == (8, 8, 4 * (9 + 20))
    assert loaded(loads) == ["bfloat16", "float32"]
    assert all(verify_run(str(path.parent.parent)) == [] for path in out.glob("cells/*/*/*/*/.run/manifest.json"))
    results = results_in(out)
    assert results["tiny/quiz/plain/float32"].score == pytest.approx(6 / 9)
    assert results["tiny/long/polite/bfloat16"].score == pytest.approx(13 / 20)
    assert all(one.images_per_s for one in results.values())
    before = (out / "results.parquet").read_bytes()
    sweep(settings, partial(load_noted, loads))
    assert (len(loaded(loads)), (out / "results.parquet").read_bytes()) == (2, before)


@pytest.mark.soak
def test_an_engine_that_does_not_load_costs_only_its_own_cells(tmp_path: Path, loads: Path) -> None:
    settings = quiz_settings(tmp_path / "out", settings={"half": {"dtype": "float16"}, **TWO_PRECISIONS})
    assert sweep(settings, partial(load_noted, loads)).incomplete == 2
    results = results_in(tmp_path / "out")
    assert {one.settings for one in results.values() if one.status == "incomplete"} == {"half"}
    assert results["tiny/quiz/own/half"].reason == "ValueError: no float16 here"
    assert loaded(loads) == ["bfloat16", "float32"]


@pytest.mark.soak
def test_a_cell_that_ends_the_run_does_not_end_the_others(tmp_path: Path, loads: Path) -> None:
    settings = quiz_settings(tmp_path / "out", prompts={"polite": "Please: {question}", "plain": None})
    loaders = Loaders(engine=partial(load_noted, loads), preprocess=NoLongPrompts)
    assert sweep(settings, loaders).complete == 2
    results = results_in(tmp_path / "out")
    assert results["tiny/long/polite/default"].reason == "KeyError: 'a bug'"
    assert results["tiny/long/plain/default"].status == "complete"


def test_errors_count_as_wrong_and_too_many_of_them_stop_their_cell_alone(tmp_path: Path, loads: Path) -> None:
    benchmarks = {
        "some": {"benchmark": "quiz", "data": "20/5"},
        "many": {"benchmark": "quiz", "data": "300/2"},
        "all": {"benchmark": "quiz", "data": "6/1"},
    }
    settings = quiz_settings(tmp_path / "out", benchmarks=benchmarks)
    summary = sweep(settings, partial(load_noted, loads))
    assert (summary.complete, summary.incomplete, summary.failed) == (2, 1, 1)
    results = results_in(tmp_path / "out")
    some, many = results["tiny/some/own/default"], results["tiny/many/own/default"]
    assert (some.rows, some.errors, some.unparsable_share) == (20, 4, 0.0)
    assert some.score == pytest.approx(sum(i % 3 != 0 and i % 5 != 0 for i in range(20)) / 20)
    assert many.reason is not None
    assert "answers failed, more than --max-error-rate 0.01 allows" in many.reason


@pytest.mark.soak
def test_a_cell_that_is_out_of_time_is_left_and_the_next_call_goes_on(tmp_path: Path) -> None:
    benchmarks = {"long": {"benchmark": "quiz", "data": "200"}, "quiz": {"data": "3"}}  # the short one is one unit
    settings = quiz_settings(tmp_path / "out", benchmarks=benchmarks)
    short = settings.model_copy(update={"cell_minutes": 0.02})
    assert sweep(short, load_slow).complete == 1
    results = results_in(tmp_path / "out")
    reason = results["tiny/long/own/default"].reason
    assert reason is not None
    assert reason.startswith("out of time:")
    assert results["tiny/quiz/own/default"].status == "complete"
    assert sweep(settings, load_slow).complete == 2


@pytest.mark.soak
def test_a_sweep_that_is_out_of_time_says_what_it_did_not_come_to(tmp_path: Path) -> None:
    settings = quiz_settings(
        tmp_path / "out", settings=TWO_PRECISIONS, benchmarks={"long": {"benchmark": "quiz", "data": "80"}}
    )
    assert sweep(settings.model_copy(update={"minutes": 0.001}), load_slow).complete == 0
    assert {one.reason for one in results_in(tmp_path / "out").values()} == {
        "the sweep's time was over; the next call goes on"
    }
    assert sweep(settings, load_slow).complete == 2
