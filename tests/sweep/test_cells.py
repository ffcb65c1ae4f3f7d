"""What a sweep asks for: its cells, which of them share an engine, and what is refused before anything starts."""

from pathlib import Path

import pytest

from jobs.sweep import read_settings
from pipeline.sweep.cells import baseline_of, cells_of
from schemas.sweep import CellName
from tests.sweep.quiz import QUIZ, quiz_settings

TWO_PRECISIONS = {"float32": {"dtype": "float32"}, "bfloat16": {"dtype": "bfloat16"}}
TWO_PROMPTS = {"plain": None, "polite": "Please: {question}"}


def test_every_combination_is_a_cell_with_a_folder_of_its_own() -> None:
    cells = cells_of(quiz_settings("out", settings=TWO_PRECISIONS, prompts=TWO_PROMPTS), [QUIZ])
    assert len({cell.job.output for cell in cells}) == len(cells) == 8
    assert cells[0].job.output == "out/cells/tiny/quiz/plain/float32"
    assert {cell.job.input for cell in cells if cell.name.prompt == "polite"} == {
        ("out/inputs/quiz/polite",),
        ("out/inputs/long/polite",),
    }


def test_the_prompt_of_a_sweep_replaces_the_benchmarks() -> None:
    cells = cells_of(quiz_settings("out", prompts=TWO_PROMPTS), [QUIZ])
    assert [next(cell.asking.questions()).prompt for cell in cells[:2]] == ["What is 0?", "Please: What is 0?"]


def test_a_benchmark_may_have_prompts_a_limit_and_settings_of_its_own() -> None:
    choice = {"prompts": {"terse": "{question} Now."}, "limit": 2, "job": {"max_new_tokens": 99}}
    (cell,) = cells_of(quiz_settings("out", benchmarks={"quiz": choice}, limit=5), [QUIZ])
    assert [question.prompt for question in cell.asking.questions()] == ["What is 0? Now.", "What is 1? Now."]
    assert cell.job.max_new_tokens == 99


def test_an_answer_is_as_long_as_the_benchmark_says() -> None:
    (cell, *_) = cells_of(quiz_settings("out"), [QUIZ])
    assert cell.job.max_new_tokens == QUIZ.max_new_tokens


def test_cells_that_one_load_answers_stand_together_and_so_do_those_that_are_drawn_alike() -> None:
    variants = {
        "a": {"max_new_tokens": 5},
        "half": {"dtype": "bfloat16"},
        "hot": {"temperature": 1.0},
        "b": {"max_error_rate": 0.5, "pdf_dpi": 100, "strips": "auto"},
        "stops": {"stop": ["."]},
    }
    cells = cells_of(quiz_settings("out", settings=variants, prompts=TWO_PROMPTS), [QUIZ])
    engines, drawn = [cell.engine_key() for cell in cells], [cell.sampling_key() for cell in cells]
    assert (len(set(engines)), len(set(drawn))) == (2, 3)
    assert engines == sorted(engines, key=engines.index)
    of_one = [cell.name.settings for cell in cells if cell.engine_key() == engines[0]]
    assert of_one == [name for name in ("a", "b", "hot", "stops") for _ in range(4)]


def test_the_baseline_of_a_cell_is_of_its_own_benchmark() -> None:
    settings = quiz_settings("out", settings=TWO_PRECISIONS, prompts=TWO_PROMPTS, baseline={"settings": "bfloat16"})
    name = CellName(model="tiny", benchmark="long", prompt="polite", settings="float32")
    assert str(baseline_of(settings, name)) == "tiny/long/plain/bfloat16"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param({"modles": {}}, "modles is no setting of a sweep; did you mean models?", id="unknown key"),
        pytest.param({"models": {"a/b": "demo"}}, "models: a name must be letters, digits", id="name"),
        pytest.param(
            {"models": {"m": {"modle": "x"}}}, "models.m: modle is no setting of a job; did you mean", id="job"
        ),
        pytest.param({"job": {"limit": 3}}, "job: limit follows from the sweep and cannot be set", id="owned"),
        pytest.param({"baseline": {"prompt": "x"}}, "baseline.prompt must be one of own, got 'x'", id="baseline"),
        pytest.param({"limit": 0}, "limit: input should be greater than or equal to 1, got 0", id="limit"),
        pytest.param({"benchmarks": {"quiz": {"dta": "x"}}}, "benchmarks.quiz.dta is no setting", id="benchmark key"),
    ],
)
def test_what_is_wrong_in_the_file_is_said_in_a_line(tmp_path: Path, changes: dict, message: str) -> None:
    config = tmp_path / "sweep.yaml"
    config.write_text(f"output: {tmp_path}\nmodels: {{demo: demo}}\nbenchmarks: [quiz]\n")
    with pytest.raises(ValueError, match=r"(?s).*") as refused:
        read_settings(config, changes)
    assert message in str(refused.value)


def test_a_benchmark_that_is_none_names_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"benchmarks: 'quizz' is none of quiz; did you mean quiz\?"):
        cells_of(quiz_settings("out", benchmarks=["quizz"]), [QUIZ])


def test_a_bad_setting_names_its_cell() -> None:
    with pytest.raises(ValueError, match="cell tiny/quiz/own/x: temperature: input should be .* got -1"):
        cells_of(quiz_settings("out", settings={"x": {"temperature": -1}}), [QUIZ])
