"""What the page of a run says in numbers."""

import re

import pytest

from pipeline.reports.page import pace_chart


def rates(pace: list[list[float]]) -> list[float]:
    return [float(number) for number in re.findall(r"answers a second: ([\d.]+)</title>", pace_chart(pace))]


@pytest.mark.parametrize(
    ("pace", "expected"),
    [
        ([[0.0, 16], [8.0, 32], [8.0, 48]], [2.0, 6.0]),  # the last two came together, and none is lost
        ([[0.0, 10], [10.0, 20], [20.0, 50]], [1.0, 3.0]),
        ([[0.0, 10], [2.0, 20], [10.0, 60], [30.0, 80]], [5.0, 1.0, 1.0]),
        ([[0.0, 10], [0.0, 20]], [0.0]),
    ],
)
def test_the_answers_of_a_unit_are_shared_out_over_the_time_since_the_one_before(pace, expected) -> None:
    assert rates(pace) == expected


def test_a_long_run_has_as_many_bars_as_a_page_has_room_for_and_all_its_answers() -> None:
    found = rates([[float(second), 10 * second] for second in range(1001)])
    assert (len(found), set(found)) == (60, {10.0})
