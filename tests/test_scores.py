"""Answers are scored against the texts that the input says are right, row by row and together."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.execution.executor import Loaders
from pipeline.plan import Plan, find_complete
from pipeline.retry import Choice, retry_failed
from pipeline.run_folder.run import read_manifest, write_manifest
from pipeline.scores import SCORES_SCHEMA, Scores, score_run, scores_in
from pipeline.scoring.reading import add_up, read_against
from pipeline.verify import verify_run
from tests.fakes import load_echo_engine
from tests.inputs import bad_row, good_row, write_parquet
from tests.test_verify import as_the_first_release_wrote_it, run_without_ray


def scored(folder: Path, empty: tuple[int, ...] = (), **changes: object) -> tuple[Plan, Scores]:
    """A run of 20 rows, one failed, two without a truth and some with an empty one, and its summary."""
    rows = [bad_row(i, "decode") if i == 3 else good_row(i) for i in range(20)]
    for number in (0, 7):
        rows[number]["question"] = None
    for number in empty:
        rows[number]["question"] = ""
    write_parquet(folder / "in.parquet", rows)
    plan = run_without_ray(folder, reference_column="question", prompt=("Q?",), **changes)
    summary = find_complete(plan)
    assert summary is not None
    assert summary.scores is not None
    return plan, summary.scores


def test_each_row_has_its_edits_and_all_together_their_rates(tmp_path: Path) -> None:
    _, scores = scored(tmp_path)
    answers = pq.read_table(tmp_path / "out" / "answers").to_pylist()
    rows = pq.read_table(tmp_path / "out" / ".run" / "scores.pq")
    readings = [read_against(a["reference"], a["text"] or "") for a in answers if a["reference"] is not None]
    assert rows.schema == SCORES_SCHEMA
    assert rows.column("id").to_pylist() == [answer["id"] for answer in answers]
    assert [cer for cer in rows.column("cer").to_pylist() if cer is not None] == [one.cer for one in readings]
    assert (scores.rows, scores.errors, scores.without_truth, scores.normalisation) == (18, 1, 2, "spaces")
    assert scores.cer == pytest.approx(add_up(readings).cer, abs=1e-6)
    assert scores.wer == pytest.approx(add_up(readings).wer, abs=1e-6)


def test_a_row_that_failed_has_read_nothing_and_one_without_a_truth_is_not_scored(tmp_path: Path) -> None:
    scored(tmp_path)
    rows = pq.read_table(tmp_path / "out" / ".run" / "scores.pq").to_pylist()
    assert (rows[3]["cer"], rows[3]["wer"]) == (1.0, 1.0)
    assert (rows[0]["cer"], rows[0]["character_edits"]) == (None, None)


def test_a_row_that_failed_is_wrong_where_its_truth_is_empty_too(tmp_path: Path) -> None:
    _, scores = scored(tmp_path, empty=(3, 4))
    rows = pq.read_table(tmp_path / "out" / ".run" / "scores.pq").to_pylist()
    failed, read = rows[3], rows[4]
    assert (failed["cer"], failed["wer"], failed["character_edits"], failed["num_characters"]) == (1.0, 1.0, 1, 0)
    assert read["cer"] > 1
    edits, length = (sum(row[name] or 0 for row in rows) for name in ("character_edits", "num_characters"))
    assert scores.cer == pytest.approx(edits / length, abs=1e-6)


def test_a_retry_that_was_killed_before_its_scores_is_finished_by_the_next_call(tmp_path: Path) -> None:
    _, scores = scored(tmp_path)
    manifest = read_manifest(str(tmp_path / "out"))
    del manifest["scores"]
    write_manifest(str(tmp_path / "out"), manifest)
    nothing_left = Choice(error_type="Nothing")
    assert retry_failed(str(tmp_path / "out"), nothing_left, Loaders(engine=load_echo_engine)).scores == scores
    assert verify_run(str(tmp_path / "out")) == []


def test_a_run_that_was_killed_before_its_scores_is_scored_by_the_same_command(tmp_path: Path) -> None:
    plan, scores = scored(tmp_path)
    manifest = read_manifest(str(tmp_path / "out"))
    del manifest["scores"]
    write_manifest(str(tmp_path / "out"), manifest)
    summary = find_complete(plan)
    assert summary is not None
    assert summary.scores == scores


def test_texts_that_are_right_have_no_errors_and_noise_has_some(tmp_path: Path) -> None:
    scored(tmp_path)
    path = tmp_path / "out" / "answers" / "part-00000.parquet"
    whole = pq.read_table(path)
    manifest = read_manifest(str(tmp_path / "out"))
    assert manifest is not None
    rates = []
    for noise in ("", "#"):
        texts = [text and text.replace("i", noise or "i") for text in whole.column("reference").to_pylist()]
        right = whole.set_column(whole.schema.get_field_index("text"), "text", pa.array(texts, pa.string()))
        pq.write_table(right, path)
        scores = scores_in(score_run(str(tmp_path / "out"), manifest))
        assert scores is not None
        rates.append(scores.cer)
    assert rates[0] == 0
    assert rates[1] is not None
    assert rates[1] > 0


def test_verify_finds_scores_that_are_not_those_that_were_written(tmp_path: Path) -> None:
    scored(tmp_path)
    assert verify_run(str(tmp_path / "out")) == []
    (tmp_path / "out" / ".run" / "scores.pq").write_bytes(b"PAR1")
    assert verify_run(str(tmp_path / "out")) == [".run/scores.pq is missing or not the file that was written"]


def test_a_run_of_the_first_release_is_scored(tmp_path: Path) -> None:
    _, scores = scored(tmp_path)
    as_the_first_release_wrote_it(tmp_path)
    manifest = read_manifest(str(tmp_path / "out"))
    assert manifest is not None
    assert scores_in(score_run(str(tmp_path / "out"), manifest)) == scores


def test_a_run_without_a_truth_says_nothing_of_scores(tmp_path: Path) -> None:
    summary = find_complete(run_without_ray(tmp_path))
    assert summary is not None
    assert summary.scores is None
    assert not (tmp_path / "out" / ".run" / "scores.pq").exists()
