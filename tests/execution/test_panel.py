"""The panel of a running job fits its terminal, and is opened where there is one alone."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from pipeline.execution.flow import Flow
from pipeline.execution.panel import open_panel, panel_of
from pipeline.execution.progress import Progress, UnitReport
from pipeline.run_folder.units import Counts
from schemas.engine import EngineStatistics

PAGE = Path(__file__).parents[2] / "docs" / "watching.md"


def at_work() -> Progress:
    """A job of 10,000 rows, a quarter done, on eight GPUs."""
    now = [0.0]
    progress = Progress(total_rows=10_000, out=io.StringIO(), clock=lambda: now[0])
    progress.expect(8)
    for unit in range(40):
        now[0] += 5
        tokens = {"num_rows": 64 * unit, "num_answer_tokens": 6400 * unit, "num_retries": unit // 9}
        seconds = {"decode_s": 4.0 * unit, "waiting_s": 0.1 * unit}
        engine = EngineStatistics(**tokens, **seconds, teraflop=unit, possible_teraflop=1.5 * unit)
        progress.add(UnitReport(counts=Counts(rows=64, errors=unit % 3), worker="a", engine=engine, seconds=1.0))
        progress.watch(Flow(left=30, preparing=12, ready=8, at_work=16, room=24, workers=8))
    return progress


def drawn(progress: Progress, columns: int, title: str = "llava-batch  s3://bucket/captions") -> list[str]:
    console = Console(width=columns, file=io.StringIO(), color_system=None)
    console.print(panel_of(progress, title))
    return console.file.getvalue().splitlines()


@pytest.mark.parametrize("columns", [60, 80, 160])
def test_a_panel_is_as_wide_as_its_terminal_and_ten_lines_high(columns: int) -> None:
    lines = drawn(at_work(), columns, "llava-batch  s3://" + "long/" * 60)
    assert {len(line) for line in lines} == {columns}
    assert len(lines) == 10
    assert any("time left  0:09:41" in line for line in lines)


def test_the_panel_and_the_line_of_the_docs_are_those_that_are_shown() -> None:
    page, progress = PAGE.read_text(encoding="utf-8"), at_work()
    assert "\n".join(drawn(progress, 80)) in page
    assert progress.line() in page


def test_a_job_that_has_just_begun_has_a_panel_without_numbers() -> None:
    progress = Progress(total_rows=0, out=io.StringIO())
    progress.watch(Flow(left=3, preparing=3))
    lines = drawn(progress, 80)
    assert any("waits for  -" in line for line in lines)
    assert any("images/s   -" in line for line in lines)


def test_a_panel_says_what_workers_wait_for_until_they_are_at_work() -> None:
    progress = Progress(total_rows=100, out=io.StringIO())
    progress.note = "waiting for the workers: 1 CPU asked for, 2 there, 1 free"
    progress.watch(Flow(left=9, preparing=9))
    assert any("waits for  the workers: 1 CPU asked for" in line for line in drawn(progress, 80))
    progress.watch(Flow(left=9, ready=3, workers=1, at_work=4, room=4))
    assert not any("1 CPU asked for" in line for line in drawn(progress, 80))


def test_without_a_terminal_no_panel_is_opened() -> None:
    assert open_panel("a job")(Progress(total_rows=1, out=io.StringIO())) is None
