"""Settings from Python: a job's, spelled as people spell them, refused by the lines of the command."""

import pytest

from llava_batch.settings import Settings, check_given
from schemas.errors import Refused
from schemas.job import JobSettings


def test_one_text_stands_for_a_list_and_a_mapping_for_named_prompts() -> None:
    settings = Settings(input="photos/", output="out", prompt={"what": "What is it?", "where": "Where?"}, keep="url")
    assert settings.input == ("photos/",)
    assert settings.prompt == ("what=What is it?", "where=Where?")
    assert settings.keep == ("url",)
    assert Settings(prompt="What?").prompt == ("What?",)


def test_they_are_a_jobs_settings_with_its_defaults() -> None:
    named = {"input", "output"}
    assert Settings().model_dump(exclude=named) == JobSettings(input=("x",), output="y").model_dump(exclude=named)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        pytest.param({"inptu": "x"}, "inptu is no setting of llava_batch.Settings; did you mean input?", id="unknown"),
        pytest.param(
            {"max_new_tokens": 0}, "max_new_tokens: input should be greater than or equal to 1, got 0", id="0"
        ),
        pytest.param({"output": " "}, "--output must not be empty", id="empty"),
        pytest.param({"prompt": {"1": "x"}}, "a prompt must have a name of a letter", id="prompt's name"),
        pytest.param({"min_new_tokens": 999}, "min_new_tokens must be at most max_new_tokens", id="both"),
    ],
)
def test_what_is_wrong_is_refused_in_a_line(values: dict[str, object], message: str) -> None:
    with pytest.raises(Refused, match=message.replace("?", r"\?")) as refused:
        Settings(**values)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("given", [{"output": "out"}, {"input": "photos/"}])
def test_a_run_needs_input_and_output(given: dict[str, str]) -> None:
    with pytest.raises(Refused, match="is required"):
        check_given(Settings(**given))
