"""The run folder: begun once, resumed only as itself, complete exactly when its manifest is there."""

import hashlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.run import (
    Counts,
    RunMismatch,
    begin_run,
    count_answers,
    done_units,
    finish_run,
    read_manifest,
    unit_path,
    write_unit,
)
from schemas.answer import Answer, answers_to_table

DESCRIPTION = {"identity": {"model": "demo", "prompt": ["What?"]}, "settings": {"gpus": 1}}


def some_answers(unit: int, rows: int = 3, failed: int = 1) -> pa.Table:
    good = [Answer(id=f"{unit}-{i}", prompt_id="p", prompt="q", status="ok", text="t") for i in range(rows - failed)]
    bad = [
        Answer(
            id=f"{unit}-bad{i}",
            prompt_id="p",
            prompt="q",
            status="error",
            error_stage="decode",
            error_type="BrokenImage",
            error_message="m",
        )
        for i in range(failed)
    ]
    return answers_to_table(good + bad)


def begun(folder: Path, units: int = 0) -> str:
    begin_run(str(folder), DESCRIPTION)
    for unit in range(units):
        write_unit(str(folder), unit, some_answers(unit))
    return str(folder)


def test_the_same_run_may_go_on(tmp_path: Path) -> None:
    first = begin_run(str(tmp_path), DESCRIPTION)
    other_placement = {**DESCRIPTION, "settings": {"gpus": 8}}
    assert begin_run(str(tmp_path), other_placement) == first


def test_another_run_is_refused_with_what_differs(tmp_path: Path) -> None:
    begun(tmp_path)
    changed = {"identity": {"model": "demo", "prompt": ["Why?"]}}
    with pytest.raises(RunMismatch, match=r"prompt: \['What\?'\] there, \['Why\?'\] now"):
        begin_run(str(tmp_path), changed)


def test_a_unit_is_done_when_its_file_exists(tmp_path: Path) -> None:
    folder = begun(tmp_path)
    assert done_units(folder) == set()
    write_unit(folder, 7, some_answers(7))
    (tmp_path / "units" / "unit-00000008.parquet.tmp").write_bytes(b"half")
    assert done_units(folder) == {7}


def test_writing_a_unit_again_changes_nothing(tmp_path: Path) -> None:
    folder = begun(tmp_path, units=1)
    before = Path(unit_path(folder, 0)).read_bytes()
    write_unit(folder, 0, some_answers(0))
    assert Path(unit_path(folder, 0)).read_bytes() == before


def test_a_finished_run_holds_every_row_in_order_and_no_units(tmp_path: Path) -> None:
    folder = begun(tmp_path, units=4)
    manifest = finish_run(folder, 4, {"seconds": 1.0})
    ids = pq.read_table(tmp_path / "answers")["id"].to_pylist()
    assert [id.split("-")[0] for id in ids] == [str(unit) for unit in range(4) for _ in range(3)]
    assert (manifest["rows"], manifest["ok"], manifest["errors"]) == (12, 8, 4)
    assert manifest["errors_by_type"] == [{"stage": "decode", "type": "BrokenImage", "rows": 4}]
    assert read_manifest(folder) == manifest
    assert not (tmp_path / "units").exists()


def test_the_manifest_names_each_file_with_its_hash(tmp_path: Path) -> None:
    folder = begun(tmp_path, units=2)
    (file,) = finish_run(folder, 2, {})["files"]
    data = (tmp_path / file["path"]).read_bytes()
    assert file == {
        "path": "answers/part-00000.parquet",
        "rows": 6,
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
    }


def test_a_run_with_a_unit_missing_cannot_finish(tmp_path: Path) -> None:
    folder = begun(tmp_path, units=2)
    with pytest.raises(RuntimeError, match="1 of 3 units are not done, the first is 2"):
        finish_run(folder, 3, {})
    assert read_manifest(folder) is None


def test_a_merge_that_was_killed_is_repeated_whole(tmp_path: Path) -> None:
    folder = begun(tmp_path, units=2)
    (tmp_path / "answers").mkdir()
    (tmp_path / "answers" / "part-00000.parquet").write_bytes(b"of an earlier try")
    finish_run(folder, 2, {})
    assert pq.read_table(tmp_path / "answers").num_rows == 6


def test_counts_add_up_by_type() -> None:
    one = count_answers(some_answers(0))
    assert one + one == Counts(rows=6, errors=2, by_type=(("decode", "BrokenImage", 2),))
