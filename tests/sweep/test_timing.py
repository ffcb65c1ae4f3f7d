"""Time is shared by the rows at work in it."""

from pipeline.sweep.timing import Effort, Span, share_time


def test_a_unit_alone_has_all_its_time() -> None:
    assert share_time([Span(cell="a", rows=8, start=1.0, end=5.0)]) == {"a": Effort(rows=8, seconds=4.0)}


def test_units_at_once_share_the_time_by_their_rows() -> None:
    spans = [Span(cell="a", rows=6, start=0.0, end=4.0), Span(cell="b", rows=2, start=0.0, end=8.0)]
    assert share_time(spans) == {"a": Effort(rows=6, seconds=3.0), "b": Effort(rows=2, seconds=5.0)}


def test_time_in_which_nothing_was_answered_is_nobodys() -> None:
    spans = [Span(cell="a", rows=1, start=0.0, end=1.0), Span(cell="a", rows=1, start=9.0, end=10.0)]
    assert share_time(spans) == {"a": Effort(rows=2, seconds=2.0)}
