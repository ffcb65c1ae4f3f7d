"""What a row asks of its own answer: honoured, or refused by name."""

import json

import pytest

from pipeline.preprocess.options import longest_answer
from schemas.errors import RowError
from schemas.job import JobSettings


def settings(**changes: object) -> JobSettings:
    return JobSettings.model_validate({"input": ("x",), "output": "out", "max_new_tokens": 64, **changes})


@pytest.mark.parametrize(
    ("options", "changes", "longest"),
    [
        pytest.param({}, {}, 64, id="nothing"),
        pytest.param({"max_tokens": 8}, {}, 8, id="a length"),
        pytest.param({"max_completion_tokens": 64, "max_tokens": 9}, {}, 9, id="two lengths"),
        pytest.param({"temperature": 0, "top_p": 0.5, "seed": 7}, {}, 64, id="what draws nothing"),
        pytest.param({"temperature": 0.5, "seed": 7}, {"temperature": 0.5, "seed": 7}, 64, id="as the job"),
        pytest.param({"stop": "x"}, {"stop": ("x",)}, 64, id="a stop"),
    ],
)
def test_what_a_job_can_do_is_honoured(options: dict[str, object], changes: dict[str, object], longest: int) -> None:
    assert longest_answer(json.dumps(options), settings(**changes)) == longest


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_tokens": 65}, "max_tokens must be a whole number from 1 to --max-new-tokens 64, got 65"),
        ({"max_tokens": 0}, "got 0"),
        ({"max_tokens": "8"}, "got '8'"),
        ({"temperature": 0.7}, "temperature is 0.7, the job's --temperature is 0.0"),
        ({"stop": ["x"]}, r"the job's --stop is \(\)"),
        ({"tools": [1]}, r"tools is \[1\], which is nothing that this pipeline does"),
        ({"n": 2}, "n is 2, which is nothing"),
    ],
)
def test_what_it_cannot_is_refused_by_name(options: dict[str, object], message: str) -> None:
    with pytest.raises(RowError, match=message):
        longest_answer(json.dumps(options), settings())
