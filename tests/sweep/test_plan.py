"""A sweep's plan: ordinary jobs on ordinary input, checked before anything starts."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.run_folder.run import begin_run
from pipeline.sources.reader import unit_reader
from pipeline.stages.preprocess import Preprocess
from pipeline.sweep.plan import plan_sweep
from schemas.benchmark import Question
from schemas.sample import table_to_samples
from tests.sweep.quiz import QUIZ, quiz_settings


def ask_with_images(path: str, prompt: str) -> Iterator[Question]:
    """Question n has n images."""
    for number, question in enumerate(QUIZ.ask(path, prompt)):
        yield replace(question, images=question.images * number)


def test_a_question_may_have_no_image_or_several(tmp_path: Path) -> None:
    benchmark = replace(QUIZ, ask=ask_with_images)
    (one,) = plan_sweep(quiz_settings(tmp_path, benchmarks={"quiz": {"data": "3"}}), [benchmark]).cells
    samples = table_to_samples(Preprocess(one.plan.settings)(unit_reader(one.plan.listing)(0)))
    assert [len(sample.image_sizes) for sample in samples] == [0, 1, 2]
    assert [sample.prompts[0].failure for sample in samples] == [None] * 3


def test_questions_of_a_benchmark_are_one_input_for_all_models_and_settings(tmp_path: Path) -> None:
    variants = {"a": {"dtype": "float32"}, "b": {"dtype": "bfloat16"}}
    plan = plan_sweep(quiz_settings(tmp_path, settings=variants), [QUIZ])
    assert len(list(tmp_path.glob("inputs/*/*/made.json"))) == 2
    assert len({one.plan.listing.fingerprint() for one in plan.cells}) == 2
    assert len(list(plan.engines())) == 2


def test_a_folder_that_holds_another_run_is_refused(tmp_path: Path) -> None:
    plan = plan_sweep(quiz_settings(tmp_path), [QUIZ])
    begin_run(plan.cells[0].cell.job.output, {**plan.cells[0].plan.describe(), "identity": {"job": "another"}})
    with pytest.raises(
        ValueError, match=r"(?s)own/default holds another run.*\n  job: 'another' there, 'sweep' now\n.*another name"
    ):
        plan_sweep(quiz_settings(tmp_path), [QUIZ])


def test_planning_again_begins_nothing(tmp_path: Path) -> None:
    plan_sweep(quiz_settings(tmp_path), [QUIZ])
    before = sorted(tmp_path.rglob("*"))
    assert not any(one.complete for one in plan_sweep(quiz_settings(tmp_path), [QUIZ]).cells)
    assert sorted(tmp_path.rglob("*")) == before
