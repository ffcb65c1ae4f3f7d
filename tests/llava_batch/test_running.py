"""A run from Python: complete ones are there at once, with their answers as rows, tables and streams."""

from pathlib import Path

import duckdb
import polars
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import llava_batch
from llava_batch.running import Run, run
from llava_batch.settings import Settings
from schemas.errors import Refused
from tests.inputs import bad_row, write_parquet
from tests.test_verify import run_without_ray
from tests.tiny import checkpoint


@pytest.fixture
def complete(tmp_path: Path) -> Run:
    run_without_ray(tmp_path)
    return run(settings(tmp_path))


def settings(folder: Path, **changes: object) -> Settings:
    base = {"input": str(folder / "in.parquet"), "output": str(folder / "out"), "model": str(checkpoint())}
    return Settings(**{**base, "unit_rows": 8, **changes})


def test_a_complete_run_is_returned_with_its_counts(complete: Run) -> None:
    assert (complete.rows, complete.ok, complete.errors, complete.images_per_s) == (20, 19, 1, None)


def test_answers_are_rows_and_tables_and_streams(complete: Run) -> None:
    answers, written = complete.answers(), pq.read_table(f"{complete.output}/answers")
    assert answers.table() == written
    assert list(answers) == written.to_pylist() == list(answers)
    assert len(answers) == 20
    assert [table.num_rows for table in answers.tables(8)] == [8, 8, 4]
    assert pa.table(answers) == written
    assert polars.DataFrame(answers)["id"].to_list() == written["id"].to_pylist()
    assert duckdb.from_arrow(pa.table(answers)).filter("status = 'error'").fetchall()[0][0] == "row-3"


def test_a_relative_output_is_in_the_folder_of_this_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_without_ray(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert run(settings(tmp_path, output="out")).output == str(tmp_path / "out")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param({"prompt": "Another?"}, "holds another run. What differs: prompt", id="another run"),
        pytest.param({"input": "no/such"}, "--input no/such", id="no input"),
        pytest.param({"wait_for_cluster": 5}, "wait_for_cluster is the command's alone", id="waiting"),
        pytest.param({"gpus": 1000, "output": "another"}, "gpus must be at most", id="gpus"),
    ],
)
def test_what_the_command_refuses_is_refused(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    run_without_ray(tmp_path)
    with pytest.raises(llava_batch.Refused, match=message):
        run(settings(tmp_path, **changes))


def test_another_job_is_refused(tmp_path: Path) -> None:
    run_without_ray(tmp_path)
    with pytest.raises(Refused, match="job must be caption or ocr, got 'sweep'"):
        run(settings(tmp_path), job="sweep")  # type: ignore[arg-type]


def test_a_run_in_which_every_row_failed_is_an_error_unless_that_is_allowed(tmp_path: Path) -> None:
    write_parquet(tmp_path / "in.parquet", [bad_row(number, "decode") for number in range(9)])
    run_without_ray(tmp_path)
    with pytest.raises(llava_batch.RunFailed, match="all 9 answers failed; max_error_rate 1"):
        run(settings(tmp_path))
    assert run(settings(tmp_path, max_error_rate=1)).ok == 0
