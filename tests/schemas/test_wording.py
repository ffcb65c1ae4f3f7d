import pytest
from pydantic import ValidationError

from schemas.job import JobSettings
from schemas.wording import describe_settings, did_you_mean


def refused(**changes) -> ValidationError:
    with pytest.raises(ValidationError) as found:
        JobSettings.model_validate({"input": ("a",), "output": "o", **changes})
    return found.value


def test_every_problem_is_a_line_with_setting_rule_and_value() -> None:
    assert describe_settings(refused(limit=0, top_p=2)) == [
        "limit: input should be greater than or equal to 1, got 0",
        "top_p: input should be less than or equal to 1, got 2",
    ]


def test_a_setting_is_called_as_it_was_typed() -> None:
    assert describe_settings(refused(top_p=2), spell=str.upper)[0].startswith("TOP_P: ")


def test_a_rule_about_several_settings_names_them_itself() -> None:
    (line,) = describe_settings(refused(min_new_tokens=9, max_new_tokens=5))
    assert line == "min_new_tokens must be at most max_new_tokens (5), got 9"


def test_what_is_no_setting_names_the_nearest() -> None:
    (line,) = describe_settings(refused(limt=3), known=JobSettings.model_fields)
    assert line == "limt is no setting of a job; did you mean limit?"
    assert did_you_mean("qqqq", JobSettings.model_fields) == ""
