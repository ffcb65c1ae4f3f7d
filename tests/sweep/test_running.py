"""Cells at work, without a cluster: begun, answered unit by unit, complete; and mended where answers are lost."""

import json
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.execution.executor import Loaders
from pipeline.run_folder.events import Events, read_lines
from pipeline.run_folder.lock import FolderInUse, hold
from pipeline.run_folder.units import write_unit
from pipeline.sources.reader import unit_reader
from pipeline.stages.generate import Generate, final_answers
from pipeline.stages.preprocess import Preprocess
from pipeline.sweep.plan import PlannedCell, plan_sweep
from pipeline.sweep.results import OUT_OF_TIME, score_sweep
from pipeline.sweep.running import CellRun, begin
from pipeline.verify import verify_run
from schemas.errors import Refused
from tests.fakes import load_echo_engine
from tests.run_folder.test_lock import change_owner
from tests.run_folder.test_mend import damage
from tests.sweep.quiz import QUIZ, quiz_settings


def planned(folder: Path) -> PlannedCell:
    """The one cell of a sweep: nine questions in three units."""
    (cell,) = plan_sweep(quiz_settings(folder, benchmarks={"quiz": {"data": "9"}}), [QUIZ]).cells
    return cell


def answer(cell: CellRun, units: Iterable[int]) -> None:
    plan = cell.planned.plan
    preprocess, generate = Preprocess(plan.settings), Generate(plan.settings, load_echo_engine)
    for unit in units:
        answers = final_answers(generate(preprocess(unit_reader(plan.listing)(unit))))
        write_unit(plan.settings.output, cell.run["run"], unit, answers)


def complete(folder: Path) -> PlannedCell:
    new = planned(folder)
    with hold(str(folder)) as lock:
        cell = begin(new, lock, Events.of(str(folder)))
        assert cell.todo == {0, 1, 2}
        answer(cell, cell.todo)
        cell.finish()
    assert cell.complete
    return planned(folder)


def test_a_cell_that_is_complete_or_given_up_is_an_event_of_the_sweep(tmp_path: Path) -> None:
    complete(tmp_path)
    other = planned(tmp_path / "other")
    with hold(str(tmp_path / "other")) as lock:
        cell = begin(other, lock, Events.of(str(tmp_path)))
        cell.abandon("out of time")
    events = [json.loads(line) for line in read_lines(str(tmp_path))]
    name = "tiny/quiz/own/default"
    assert [{key: one[key] for key in one if key != "time"} for one in events] == [
        {"event": "cell_complete", "cell": name, "rows": 9, "errors": 0},
        {"event": "cell_given_up", "cell": name, "message": "out of time"},
    ]


def test_a_sweep_that_was_given_up_begins_and_merges_no_cell_and_its_workers_write_nothing(tmp_path: Path) -> None:
    new = planned(tmp_path)
    with hold(str(tmp_path)) as lock:
        cell = begin(new, lock)
        answer(cell, cell.todo)
        shard = cell.shard(Loaders(engine=load_echo_engine))
        change_owner(str(tmp_path))
        with pytest.raises(FolderInUse):
            cell.finish()
        with pytest.raises(FolderInUse):
            begin(new, lock)
        with pytest.raises(RuntimeError, match="its unit is not written"):
            shard.write(3, pa.table({}))
    assert len(list(Path(new.plan.settings.output, "units").iterdir())) == 3
    assert not planned(tmp_path).complete


@pytest.mark.parametrize("how", ["gone", "one bit"])
def test_a_cell_whose_answers_are_lost_is_answered_again_by_the_same_command(tmp_path: Path, how: str) -> None:
    done = complete(tmp_path)
    assert done.complete
    output = Path(done.plan.settings.output)
    (file,) = (output / "answers").glob("*.parquet")
    before = file.read_bytes()
    damage(file, how)
    assert not (again := planned(tmp_path)).complete
    with hold(str(tmp_path)) as lock:
        cell = begin(again, lock)
        assert cell.todo == {0, 1, 2}
        answer(cell, [2, 0])
        assert (cell := begin(again, lock)).todo == {1}  # after a kill
        answer(cell, [1])
        cell = begin(again, lock)
    assert cell.complete
    assert file.read_bytes() == before
    assert verify_run(str(output)) == []
    assert planned(tmp_path).complete


def test_a_cell_whose_lost_answers_are_not_there_yet_is_incomplete_and_not_judged(tmp_path: Path) -> None:
    settings = quiz_settings(tmp_path, benchmarks={"quiz": {"data": "9"}})
    done = complete(tmp_path)
    damage(Path(done.plan.settings.output, "answers", "part-00000.parquet"), "torn")
    plan = plan_sweep(settings, [QUIZ])
    (result,) = score_sweep(plan, {done.cell.name: OUT_OF_TIME})
    assert (result.status, result.reason) == ("incomplete", OUT_OF_TIME)
    with pytest.raises(Refused, match="is not the file that was written"):
        score_sweep(plan, {})
