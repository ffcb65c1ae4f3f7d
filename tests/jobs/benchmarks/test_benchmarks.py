from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import pytest

from jobs.benchmarks import BENCHMARKS
from schemas.benchmark import Benchmark, Question
from tests.jobs.benchmarks import datasets

NAMED = {benchmark.name: benchmark for benchmark in BENCHMARKS}
SHORT = "\nAnswer the question using a single word or phrase."
LETTER = "\nAnswer with the option's letter from the given choices directly."


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """The first question of a written dataset, and right, wrong and unparsable answers to it."""

    name: str
    write: Callable[[Path], str]
    id: str
    prompt: str
    images: int = 1
    num_questions: int
    split: str | None = None
    right: str
    right_score: float = 1.0
    wrong: str


CASES = [
    Case(
        name="vqav2",
        write=datasets.vqav2,
        id="262148000",
        prompt="Where is he looking?" + SHORT,
        num_questions=3,
        split="other",
        right="Down.",
        wrong="up",
    ),
    Case(
        name="textvqa",
        write=datasets.textvqa,
        id="34602",
        prompt="What is the brand of this camera?" + SHORT,
        num_questions=2,
        right="dakota digital",
        wrong="nikon",
    ),
    Case(
        name="pope",
        write=datasets.pope,
        id="random-1",
        prompt="Is there a snowboard in the image?" + SHORT,
        num_questions=3,
        split="random",
        right="Yes",
        wrong="No, there is none.",
    ),
]
by_name = pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])


def read(case: Case, folder: Path) -> tuple[Benchmark, list[Question]]:
    benchmark = NAMED[case.name]
    return benchmark, list(benchmark.read(case.write(folder)))


def test_every_benchmark_has_a_case_and_a_name_of_its_own() -> None:
    assert [case.name for case in CASES] == [benchmark.name for benchmark in BENCHMARKS]
    assert len(NAMED) == len(BENCHMARKS)


@by_name
def test_a_dataset_is_read_in_its_published_layout(case: Case, tmp_path: Path) -> None:
    _, questions = read(case, tmp_path)
    first = questions[0]
    assert (first.id, first.prompt, first.split) == (case.id, case.prompt, case.split)
    assert len(questions) == case.num_questions
    assert len(first.images) == case.images
    assert all(image.startswith(b"the bytes of") for question in questions for image in question.images)


@by_name
def test_right_is_right_and_wrong_is_wrong(case: Case, tmp_path: Path) -> None:
    benchmark, (first, *_) = read(case, tmp_path)
    assert benchmark.judge(first, case.right).score == pytest.approx(case.right_score)
    assert benchmark.judge(first, case.wrong).score == 0
    assert benchmark.judge(first, case.wrong).id == first.id


@by_name
def test_an_answer_that_failed_is_wrong_and_unparsable(case: Case, tmp_path: Path) -> None:
    benchmark, questions = read(case, tmp_path)
    judged = [benchmark.judge(question, "") for question in questions]
    assert {(one.score, one.parsed) for one in judged} == {(0.0, None)}
    assert next(iter(benchmark.summarise(judged).values())) == 0


@by_name
def test_a_summary_does_not_change_when_every_answer_is_drawn_twice(case: Case, tmp_path: Path) -> None:
    benchmark, questions = read(case, tmp_path)
    judged = [benchmark.judge(question, (case.right, case.wrong)[n % 2]) for n, question in enumerate(questions)]
    assert benchmark.summarise(judged * 2) == pytest.approx(benchmark.summarise(judged))


@by_name
def test_the_first_questions_are_those_of_all(case: Case, tmp_path: Path) -> None:
    benchmark, questions = read(case, tmp_path)
    assert list(benchmark.read(str(tmp_path), limit=1)) == questions[:1]


@by_name
def test_another_template_asks_otherwise(case: Case, tmp_path: Path) -> None:
    path = case.write(tmp_path)
    first = next(replace(NAMED[case.name], prompt="Q: {question} A:").read(path))
    assert first.prompt.startswith("Q: ")
    with pytest.raises(ValueError, match=r"prompt must have no fields but .*{question}.*, got {answer}"):
        next(replace(NAMED[case.name], prompt="{answer}").read(path))


@by_name
def test_a_missing_column_is_named(case: Case, tmp_path: Path) -> None:
    datasets.write(tmp_path, [{"questions": "Why?"}], pa.schema({"questions": pa.string()}))
    with pytest.raises(ValueError, match=r"a.parquet must have a column '\w+'; .*it has questions"):
        next(NAMED[case.name].read(str(tmp_path)))


def test_an_id_that_comes_twice_is_refused(tmp_path: Path) -> None:
    datasets.pope(tmp_path)
    (tmp_path / "b.parquet").write_bytes((tmp_path / "a.parquet").read_bytes())
    with pytest.raises(ValueError, match="pope: question ids must be unique, got 'random-1' twice"):
        list(NAMED["pope"].read(str(tmp_path)))


def test_an_empty_folder_and_a_file_of_another_kind_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must name Parquet files, none is there"):
        next(NAMED["pope"].read(str(tmp_path)))
    (tmp_path / "a.parquet").write_text("no")
    with pytest.raises(ValueError, match=r"a.parquet must be a Parquet file"):
        next(NAMED["pope"].read(str(tmp_path)))
