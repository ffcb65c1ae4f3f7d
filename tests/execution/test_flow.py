"""What a job waits for follows from where its units are."""

import pytest

from pipeline.execution.flow import Flow, Waiting


@pytest.mark.parametrize(
    ("flow", "input_share", "output_share", "reason"),
    [
        pytest.param(Flow(left=9, preparing=4), 0.0, 0.0, "a model to load", id="nobody is ready"),
        pytest.param(Flow(left=9, ready=2, at_work=5, room=5, workers=1), 0.9, 0.1, "GPU", id="units are to spare"),
        pytest.param(Flow(left=9, at_work=4, room=5, workers=1), 0.9, 0.1, "GPU", id="no slot is idle"),
        pytest.param(Flow(left=9, ready=2, at_work=5, room=5, workers=1), 0.1, 0.9, "output", id="a slow disk"),
        pytest.param(Flow(left=9, at_work=1, room=5, workers=1), 0.9, 0.9, "input", id="a slow store"),
        pytest.param(Flow(left=9, at_work=1, room=5, workers=1), 0.2, 0.9, "preprocessing", id="too few cores"),
        pytest.param(Flow(left=2, at_work=2, room=5, workers=1), 0.9, 0.0, "GPU", id="the last units"),
    ],
)
def test_what_a_job_waits_for(flow: Flow, input_share: float, output_share: float, reason: str) -> None:
    waiting = Waiting(input_share=input_share, output_share=output_share)
    waiting.look(flow)
    assert waiting.reason == reason


def test_one_look_that_differs_is_not_said() -> None:
    waiting, full = Waiting(), Flow(left=9, ready=1, at_work=5, room=5, workers=1)
    for flow in (full, full, Flow(left=9, at_work=0, room=5, workers=1), full):
        waiting.look(flow)
    assert waiting.reason == "GPU"


def test_once_a_model_is_there_nobody_waits_for_it_any_more() -> None:
    waiting = Waiting()
    for _ in range(9):
        waiting.look(Flow(left=9, preparing=4))
    waiting.look(Flow(left=9, preparing=4, room=5, workers=1))
    assert waiting.reason == "preprocessing"


def test_shares_are_those_of_the_units_that_came_lately() -> None:
    waiting = Waiting()
    for share in (0.0,) * 50 + (1.0,) * 20:
        waiting.hear(share, 0.0)
    assert 0.9 < waiting.input_share < 1.0
    assert waiting.output_share == 0.0
