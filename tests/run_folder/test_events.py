"""Events of a run: JSON lines in its folder, kept over a resume, few, and never what a job fails for."""

import json
import re
from pathlib import Path
from typing import get_args

import pytest

from pipeline.execution.executor import ErrorBudgetSpent
from pipeline.execution.progress import Progress, UnitReport
from pipeline.job import noted
from pipeline.plan import find_complete
from pipeline.run_folder.events import NAME, Events, Kind, last_event, read_lines
from pipeline.run_folder.layout import state_path
from pipeline.run_folder.lock import FolderInUse, Timing, hold
from pipeline.run_folder.units import Counts, ErrorType
from pipeline.storage import filesystem as fs
from schemas.engine import EngineStatistics
from tests.run_folder.test_mend import three_files


def kinds(folder: Path) -> list[str]:
    return [json.loads(line)["event"] for line in read_lines(str(folder))]


def test_a_run_that_goes_on_adds_to_what_was_before(tmp_path: Path) -> None:
    for _ in range(2):
        with noted(Events.of(str(tmp_path)), answers=3) as end:
            end["ok"] = 3
    assert kinds(tmp_path) == ["started", "finished"] * 2
    assert last_event(str(tmp_path)).items() >= {"event": "finished", "ok": 3}.items()


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        pytest.param(ErrorBudgetSpent("9 of 100"), "budget_spent", id="budget"),
        pytest.param(KeyboardInterrupt(), "stopped", id="interrupt"),
        pytest.param(OSError("disk full"), "failed", id="failure"),
    ],
)
def test_how_a_run_ends_is_an_event(tmp_path: Path, error: BaseException, kind: str) -> None:
    with pytest.raises(type(error)), noted(Events.of(str(tmp_path))):
        raise error
    assert kinds(tmp_path) == ["started", kind]


def test_a_driver_that_has_lost_its_folder_leaves_the_events_to_the_other(tmp_path: Path) -> None:
    with pytest.raises(FolderInUse), noted(Events.of(str(tmp_path))):
        raise FolderInUse("another driver has it")
    assert kinds(tmp_path) == ["started"]


def test_a_driver_that_does_not_know_yet_replaces_no_event_of_the_one_that_has_followed_it(tmp_path: Path) -> None:
    with hold(str(tmp_path), Timing(beat_s=1000)) as lock:
        first = Events.of(str(tmp_path), lock.confirm)
        first.add("started", 0.0)
        Events.of(str(tmp_path)).add("finished", 0.0)  # of another driver, which has taken the lock over
        fs.write_atomic(lock.url, b"{}")
        with pytest.raises(FolderInUse, match="was taken over"):
            first.add("rows_failed", 99.0)
    assert kinds(tmp_path) == ["started", "finished"]


def test_secrets_in_messages_are_not_written(tmp_path: Path) -> None:
    Events.of(str(tmp_path)).add("failed", 0.0, message="s3://key:secret@host/x?token=abcdef " + "x" * 9999)
    text = Path(state_path(str(tmp_path), NAME)).read_text()
    assert "secret" not in text
    assert "abcdef" not in text
    assert len(text) < 1000


def test_what_comes_often_is_written_now_and_then_and_not_without_end(tmp_path: Path) -> None:
    events = Events.of(str(tmp_path))
    for number in range(3000):
        events.add("rows_failed", number / 1000, unit=number)
    assert len(read_lines(str(tmp_path))) == 1
    events.add("finished", 4.0)
    assert len(read_lines(str(tmp_path))) == 2001
    assert kinds(tmp_path)[-1] == "finished"


def test_a_folder_that_cannot_be_written_is_said_once(tmp_path: Path, capsys) -> None:
    (tmp_path / "file").write_text("")
    events = Events.of(str(tmp_path / "file"))
    events.add("started", 0.0)
    events.add("finished", 1.0)
    assert capsys.readouterr().err.count("events.jsonl cannot be written") == 1


def test_failed_rows_and_lost_workers_are_noted(tmp_path: Path) -> None:
    events = Events.of(str(tmp_path))
    progress = Progress(total_rows=9, events=events, workers=1, out=open(tmp_path / "out", "w"))  # noqa: SIM115
    failed = ErrorType(stage="decode", type="BrokenImage", rows=2, examples=())
    for worker, counts in (("a", Counts(rows=3)), ("a", Counts(rows=3, errors=2, by_type=(failed,))), ("b", Counts())):
        progress.add(UnitReport(counts=counts, worker=worker, engine=EngineStatistics(), unit=7))
    progress.out.close()
    noted_lines = [json.loads(line) for line in events.lines]
    assert [one["event"] for one in noted_lines] == ["rows_failed", "worker_lost"]
    assert noted_lines[0].items() >= {"unit": 7, "errors": 2, "types": {"decode/BrokenImage": 2}}.items()


@pytest.mark.parametrize("text", ["", "{", "[1]\n", "\xff"])
def test_lines_that_are_no_events_are_passed_over(tmp_path: Path, text: str) -> None:
    Events.of(str(tmp_path)).add("started", 0.0)
    with open(state_path(str(tmp_path), NAME), "a", encoding="latin-1") as file:
        file.write(text)
    assert last_event(str(tmp_path))["event"] == "started"


def test_the_documented_events_are_those_that_there_are() -> None:
    page = (Path(__file__).parents[2] / "docs" / "watching.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `(\w+)` \|", page, flags=re.MULTILINE)) == set(get_args(Kind))


def test_a_run_that_was_killed_before_its_last_event_has_finished_in_the_next_call(tmp_path: Path) -> None:
    plan, _ = three_files(tmp_path)
    folder = plan.settings.output
    Events.of(folder).add("started", 0.0)
    assert find_complete(plan) is None  # left to a driver that holds the folder
    for _ in range(2):
        assert find_complete(plan, held=True) is not None
    assert [json.loads(line)["event"] for line in read_lines(folder)] == ["started", "finished"]
    event = last_event(folder)
    assert event is not None
    assert (event["rows"], event["errors"]) == (20, 1)
    assert find_complete(plan) is not None
