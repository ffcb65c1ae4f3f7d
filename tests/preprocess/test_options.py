"""What a row asks of its own answer: honoured, or refused by name."""

import json

import pytest

from pipeline.preprocess.options import longest_answer
from schemas.errors import RowError
from schemas.job import JobSettings

TOTAL = {"type": "object", "properties": {"total": {"type": "string"}}}
ASKED = {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": TOTAL}}}
OWN = {"json_schema_column": "response_format"}


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
        pytest.param({"n": 3}, {"num_answers": 3, "temperature": 1.0}, 64, id="several answers"),
        pytest.param({"logprobs": True, "top_logprobs": 2}, {"logprobs": 5}, 64, id="log-probabilities, and more"),
        pytest.param(ASKED, {"json_schema": json.dumps(TOTAL)}, 64, id="the job's schema"),
        pytest.param(ASKED, OWN, 64, id="a schema of its own"),
        pytest.param({"response_format": {"type": "json_object"}}, OWN, 64, id="any object"),
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
        ({"n": 2}, "n is 2, the job's --num-answers is 1"),
        ({"logprobs": True}, "logprobs is True, the job's --logprobs is None: a job with --logprobs 0 gives them"),
        ({"top_logprobs": 2}, "a job with --logprobs 2 gives them"),
        ({"top_logprobs": "2"}, "top_logprobs must be a whole number, got '2'"),
        (ASKED, "asks for a form, which the job's answers do not have: --json-schema-column response_format gives"),
        ({"response_format": {"type": "json_schema"}}, "response_format must be of type text, json_object, or"),
        ({"response_format": "json"}, "response_format must be of type text"),
        ({"guided_regex": "a+"}, "guided_regex is 'a.', which is nothing that this pipeline does"),
    ],
)
def test_what_it_cannot_is_refused_by_name(options: dict[str, object], message: str) -> None:
    with pytest.raises(RowError, match=message):
        longest_answer(json.dumps(options), settings())
