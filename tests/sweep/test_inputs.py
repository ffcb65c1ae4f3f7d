"""The questions as Parquet: written once, whole, and never mixed with those of other data."""

from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline.sweep.cells import Asking
from pipeline.sweep.inputs import INPUT_SCHEMA, is_made, write_input
from tests.sweep.quiz import QUIZ


def asking_in(folder: Path, **changes: object) -> Asking:
    asking = Asking(name="quiz", prompt="own", benchmark=QUIZ, data="250", limit=None, folder=str(folder / "inputs"))
    return replace(asking, **changes)


def test_questions_are_written_as_they_are_asked_a_hundred_a_row_group(tmp_path: Path) -> None:
    asking = asking_in(tmp_path)
    write_input(asking)
    (file,) = (tmp_path / "inputs").glob("*.parquet")
    table = pq.read_table(file)
    assert table.schema.equals(INPUT_SCHEMA)
    assert table.select(["id", "prompt"]).to_pylist() == [{"id": q.id, "prompt": q.prompt} for q in asking.questions()]
    assert [tuple(row) for row in table["images"].to_pylist()] == [q.images for q in asking.questions()]
    metadata = pq.read_metadata(file)
    assert [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)] == [100, 100, 50]


def test_what_is_written_is_not_written_again(tmp_path: Path) -> None:
    write_input(asking_in(tmp_path))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "inputs").iterdir()}
    write_input(asking_in(tmp_path))
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "inputs").iterdir()} == before


def test_what_a_kill_left_is_written_anew(tmp_path: Path) -> None:
    write_input(asking_in(tmp_path))
    (tmp_path / "inputs" / "made.json").unlink()
    (tmp_path / "inputs" / "part-00007.parquet").write_bytes(b"half a fi")
    assert not is_made(asking_in(tmp_path))
    write_input(asking_in(tmp_path))
    assert pq.read_table(tmp_path / "inputs" / "part-00000.parquet").num_rows == 250
    assert len(list((tmp_path / "inputs").glob("*.parquet"))) == 1


@pytest.mark.parametrize("changes", [{"limit": 3}, {"data": "8"}, {"benchmark": replace(QUIZ, prompt="{question}!")}])
def test_other_questions_under_the_same_name_are_refused(tmp_path: Path, changes: dict) -> None:
    write_input(asking_in(tmp_path))
    with pytest.raises(ValueError, match="holds questions made from .*'data': '250'.* choose a new output"):
        write_input(asking_in(tmp_path, **changes))


def test_a_benchmark_without_questions_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="0 must have at least one question for quiz, it has none"):
        write_input(asking_in(tmp_path, data="0"))


def test_a_picture_that_questions_share_is_stored_once(tmp_path: Path) -> None:
    def ask_about_one(path: str, prompt: str) -> object:
        first, *_ = QUIZ.ask("1", prompt)
        return (replace(first, id=str(number), images=(bytes(range(256)) * 400,)) for number in range(90))

    write_input(asking_in(tmp_path, benchmark=replace(QUIZ, ask=ask_about_one)))
    (file,) = (tmp_path / "inputs").glob("*.parquet")
    assert pq.read_metadata(file).row_group(0).column(1).total_uncompressed_size < 2 * 256 * 400
