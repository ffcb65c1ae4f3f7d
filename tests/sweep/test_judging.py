"""Answers meet their questions by id, and one that failed is wrong and counted apart."""

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.run_folder.merge import in_manifest, write_answers
from pipeline.run_folder.run import FORMAT, begin_run, write_manifest
from pipeline.run_folder.units import Counts, to_parquet
from pipeline.sweep.cells import Cell, cells_of
from pipeline.sweep.judging import Marked, judge_cells
from schemas.answer import Answer, answers_to_table
from schemas.errors import Refused
from tests.sweep.quiz import QUIZ, quiz_settings

FAILED = {"status": "error", "error_stage": "decode", "error_type": "BrokenImage", "error_message": "no image"}


def answer(number: int, text: str | None, reason: str = "stop") -> Answer:
    said = {"status": "ok", "text": text, "finish_reason": reason} if text is not None else FAILED
    return Answer(id=f"q{number}", prompt_id="prompt", prompt="?", **said)


def the_cell(folder: Path, count: int) -> Cell:
    (cell,) = cells_of(quiz_settings(folder, benchmarks={"quiz": {"data": str(count)}}), [QUIZ])
    return cell


def marked(path: Path, answers: list[Answer], count: int) -> Marked:
    """The one cell of a sweep whose run folder has these answers, judged."""
    cell = the_cell(path, count)
    folder, half = cell.job.output, len(answers) // 2
    run = begin_run(folder, {"identity": {}, "settings": {}})
    files = [
        write_answers(folder, f"answers/{name}.parquet", to_parquet(answers_to_table(some)), len(some))
        for name, some in (("a", answers[:half]), ("b", answers[half:]))
    ]
    manifest = {"format": FORMAT, "run": run["run"], "fingerprint": run["fingerprint"], "files": files, "retries": []}
    write_manifest(folder, {**manifest, **in_manifest(Counts(rows=len(answers)))})
    return judge_cells(cell.asking, [cell], str(path / "judged"))[cell.name]


def test_answers_are_joined_by_id_whatever_their_order(tmp_path: Path) -> None:
    found = marked(tmp_path, [answer(2, "2?"), answer(0, "0?"), answer(1, "3?")], count=3)
    assert [(one.id, one.score) for one in found.judged] == [("q0", 0.0), ("q1", 0.0), ("q2", 1.0)]


def test_an_answer_that_failed_is_wrong_and_no_unparsable_one(tmp_path: Path) -> None:
    found = marked(tmp_path, [answer(0, None), answer(1, ""), answer(2, "2? and 2? and", "length")], count=3)
    assert [one.score for one in found.judged] == [0.0, 0.0, 1.0]
    assert (found.num_rows, found.errors, found.unparsable, found.cut) == (3, 1, 1, 1)


def test_of_several_draws_a_question_has_the_mean_and_each_is_kept(tmp_path: Path) -> None:
    draws = [(0, "0?"), (0, ""), (0, "0?"), (0, "0?"), (1, "1?"), (1, "wrong"), (1, None), (1, "1?")]
    answers = [
        replace(answer(number, text, "stop" if place else "length"), prompt_id=f"prompt.{place % 4 + 1}")
        for place, (number, text) in enumerate(draws)
    ]
    found = marked(tmp_path, answers, count=2)
    assert [(one.id, one.score) for one in found.judged] == [("q0", 0.0), ("q1", 0.5)]
    assert (found.num_rows, found.errors, found.cut, found.unparsable) == (2, 1, 0.25, 0.25)
    kept = pq.read_table(tmp_path / "judged" / "tiny" / "quiz" / "own" / "default.parquet")
    assert kept["score"].to_pylist() == [0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 1.0]


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        pytest.param([answer(0, "0?")], "no answer of cell tiny/quiz/own/default is to its question q1", id="missing"),
        pytest.param([answer(number, "") for number in range(3)], "it has no question q2, cell", id="too many"),
    ],
)
def test_questions_that_have_changed_since_are_refused(tmp_path: Path, answers: list[Answer], message: str) -> None:
    with pytest.raises(ValueError, match=f"2 has changed: {message}"):
        marked(tmp_path, answers, count=2)


def test_what_was_judged_is_kept_beside_the_truth(tmp_path: Path) -> None:
    marked(tmp_path, [answer(0, None), answer(1, "1?")], count=2)
    kept = pq.read_table(tmp_path / "judged" / "tiny" / "quiz" / "own" / "default.parquet")
    assert kept.select(["id", "answer", "references", "score", "parsed"]).to_pylist() == [
        {"id": "q0", "answer": None, "references": ["never said"], "score": 0.0, "parsed": None},
        {"id": "q1", "answer": "1?", "references": ["1?"], "score": 1.0, "parsed": "1?"},
    ]
    assert kept.schema.field("answer").type == pa.string()


def test_answers_that_are_not_those_of_the_run_are_not_judged(tmp_path: Path) -> None:
    answers = [answer(number, "0?") for number in range(2)]
    marked(tmp_path, answers, count=2)
    cell = the_cell(tmp_path, 2)
    path = Path(cell.job.output, "answers", "a.parquet")
    pq.write_table(answers_to_table([answer(0, "1?")]), path)
    with pytest.raises(Refused, match=r"a\.parquet is not the file that was written"):
        judge_cells(cell.asking, [cell], str(tmp_path / "judged"))
