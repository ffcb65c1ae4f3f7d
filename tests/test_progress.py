"""The progress line counts what is done, what failed and what is left."""

import io
import time

from pipeline.progress import Progress
from pipeline.units import Counts


def test_the_line_says_how_many_are_done_and_failed() -> None:
    progress = Progress(total_rows=10_000, out=io.StringIO())
    progress.add(Counts(rows=1_000, errors=3))
    assert progress.line() == "1,000 of 10,000 answers, 3 failed"


def test_the_pace_leaves_out_the_time_before_the_first_unit() -> None:
    progress = Progress(total_rows=400, out=io.StringIO(), started=time.monotonic() - 1000)
    progress.add(Counts(rows=100))
    assert progress.rows_per_s() is None
    progress.first_at = time.monotonic() - 10
    progress.add(Counts(rows=100))
    assert progress.line().endswith("10.0 a second, 0:00:20 left")


def test_a_log_gets_a_line_only_now_and_then() -> None:
    out = io.StringIO()
    progress = Progress(total_rows=100, out=out, every_s=3600)
    for _ in range(50):
        progress.add(Counts(rows=1))
    progress.show()
    assert out.getvalue().splitlines()[0] == "1 of 100 answers, 0 failed"
    assert len(out.getvalue().splitlines()) == 2
