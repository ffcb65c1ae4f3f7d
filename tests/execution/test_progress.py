"""The progress line counts what is done, what failed and what is left."""

import io

import pytest

from pipeline.execution.flow import Flow
from pipeline.execution.progress import Pace, Progress, UnitReport, describe_engine
from pipeline.run_folder.units import Counts
from schemas.engine import EngineStatistics

WORK = EngineStatistics(
    prefill_s=6.0,
    decode_s=3.0,
    waiting_s=1.0,
    teraflop=60.0,
    possible_teraflop=90.0,
    num_padded_tokens=100,
    num_prefilled_tokens=95,
)


def report(worker: str = "one", engine: EngineStatistics = WORK - WORK, **counts: int) -> UnitReport:
    return UnitReport(counts=Counts(**counts), worker=worker, engine=engine)


def test_the_line_says_how_many_are_done_and_failed() -> None:
    progress = Progress(total_rows=10_000, out=io.StringIO())
    progress.add(report(rows=1_000, errors=3))
    assert progress.line() == "1,000 of 10,000 answers, 3 failed"


def test_the_pace_leaves_out_the_time_before_the_first_unit() -> None:
    now = [500.0]
    progress = Progress(total_rows=400, out=io.StringIO(), clock=lambda: now[0])
    progress.add(report(rows=100))
    assert progress.rows_per_s() is None
    now[0] = 510.0
    progress.add(report(rows=100))
    assert progress.line().endswith("10.0 images/s now, 10.0 mean, 0:00:20 left")


def test_rows_with_several_answers_count_as_one_image() -> None:
    now = [500.0]
    progress = Progress(total_rows=400, answers_each=4, out=io.StringIO(), clock=lambda: now[0])
    for now[0] in (500.0, 510.0, 600.0, 610.0):
        progress.add(report(rows=80))
    assert progress.images_per_s() == (0.4, 6 / 11)


def test_a_pace_falls_while_nothing_comes_in() -> None:
    now = [0.0]
    progress = Progress(total_rows=400, out=io.StringIO(), clock=lambda: now[0])
    for now[0], rows in ((0.0, 1), (10.0, 100)):
        progress.add(report(rows=rows, engine=EngineStatistics(num_rows=rows, num_answer_tokens=10 * rows)))
    assert (progress.images_per_s()[0], progress.tokens_per_s()) == (10.0, 99.0)
    now[0] = 100.0
    assert (progress.images_per_s()[0], progress.tokens_per_s()) == (1.0, 9.9)


def test_the_line_says_how_many_tokens_come_now_and_what_was_tried_again() -> None:
    now = [0.0]
    progress = Progress(total_rows=400, out=io.StringIO(), clock=lambda: now[0])
    for now[0], tokens in ((10.0, 500), (20.0, 1500)):
        progress.add(report(rows=1, engine=EngineStatistics(num_rows=tokens, num_answer_tokens=tokens, num_retries=2)))
    progress.watch(Flow(left=3, again=1))
    assert ", 3 retried, " in progress.line()
    assert progress.line().endswith(", 100 tokens/s, waits for a model to load")


def test_a_log_gets_a_line_only_now_and_then() -> None:
    out = io.StringIO()
    progress = Progress(total_rows=100, out=out, every_s=3600)
    for _ in range(50):
        progress.add(report(rows=1))
    progress.show()
    assert out.getvalue().splitlines()[0] == "1 of 100 answers, 0 failed"
    assert len(out.getvalue().splitlines()) == 2


def test_a_log_gets_no_line_twice() -> None:
    out = io.StringIO()
    progress = Progress(total_rows=1, out=out)
    progress.add(report(rows=1))
    progress.end()
    assert out.getvalue() == "1 of 1 answers, 0 failed\n"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("columns", "last"),
    [(200, "GPUs 90 % busy at 67 %"), (80, "0:00:20 left"), (70, "5.0 mean"), (50, "3 failed"), (9, "answers")],
)
def test_a_line_on_a_terminal_stays_in_one_row_as_the_next_is_written_over_it(columns: int, last: str) -> None:
    now, out = [500.0], Terminal()
    progress = Progress(total_rows=200, out=out, clock=lambda: now[0], columns=lambda: columns)
    progress.add(report(rows=50, engine=WORK, errors=3))
    now[0] += 10
    progress.add(report(rows=50, engine=WORK))
    line = out.getvalue().rpartition("\x1b[K")[2]
    assert line.endswith(last)
    assert len(line) < max(columns, 20)


def test_the_line_says_how_well_the_gpus_are_used() -> None:
    progress = Progress(total_rows=100, out=io.StringIO())
    progress.add(report(rows=1, engine=WORK))
    assert progress.line().endswith("GPUs 90 % busy at 67 %")


def test_a_report_that_was_overtaken_takes_nothing_back() -> None:
    progress = Progress(total_rows=100, out=io.StringIO())
    for num_rows in (8, 24, 16):
        progress.add(report(rows=8, engine=EngineStatistics(num_rows=num_rows)))
    assert progress.engine().num_rows == 24


def test_what_engines_did_adds_up_over_workers_and_counts_once_for_each() -> None:
    progress = Progress(total_rows=100, out=io.StringIO())
    for worker in ("one", "two", "one"):
        progress.add(report(worker, engine=WORK, rows=1))
    assert progress.engine() == WORK + WORK
    assert describe_engine(progress.engine())["prefill_padding"] == 0.05


def test_the_pace_stands_still_at_the_end() -> None:
    now = [500.0]
    progress = Progress(total_rows=200, out=io.StringIO(), clock=lambda: now[0])
    progress.add(report(rows=100))
    now[0] = 510.0
    progress.add(report(rows=100))
    progress.end()
    now[0] = 900.0
    assert progress.rows_per_s() == 10


@pytest.mark.parametrize("uptime_s", [1.0, 10_000.0])
def test_the_first_line_is_shown_however_long_the_machine_has_been_up(uptime_s: float) -> None:
    out = io.StringIO()
    progress = Progress(total_rows=100, out=out, every_s=3600, clock=lambda: uptime_s)
    progress.add(report(rows=1))
    assert out.getvalue() == "1 of 100 answers, 0 failed\n"


def test_whoever_waits_is_told_for_what_unless_units_come_in() -> None:
    out, now = io.StringIO(), [0.0]
    progress = Progress(total_rows=100, out=out, clock=lambda: now[0])
    progress.say_if_silent("waiting for machines")
    progress.add(report(rows=1))
    now[0] = 29.0
    progress.say_if_silent("busy")
    now[0] = 31.0
    progress.say_if_silent("waiting for workers")
    assert out.getvalue().splitlines() == [
        "waiting for machines",
        "1 of 100 answers, 0 failed",
        "1 of 100 answers, 0 failed; waiting for workers",
    ]


def test_a_job_whose_workers_are_all_at_work_waits_for_none_of_them() -> None:
    out = io.StringIO()
    progress = Progress(total_rows=100, out=out)
    progress.expect(2)
    progress.watch(Flow(left=9, ready=5, workers=1, at_work=1, room=4))
    progress.say_if_silent("waiting for the workers: 2 GPUs asked for")
    progress.watch(Flow(left=9, ready=3, workers=2, at_work=4, room=8))
    progress.say_if_silent("waiting for the workers: 2 GPUs asked for")
    assert out.getvalue().splitlines() == ["waiting for the workers: 2 GPUs asked for", "4 units at work"]


def test_a_pace_has_a_few_points_of_a_run_of_any_length() -> None:
    pace = Pace()
    for unit in range(100_000):
        pace.add(50.0 + unit, 8 * (unit + 1))
    points = pace.described()
    assert 256 <= len(points) <= 514
    assert (points[0], points[-1]) == ([0.0, 8], [99_999.0, 800_000])
    assert points == sorted(points)


def test_a_run_without_units_has_no_pace() -> None:
    assert Pace().described() == []
