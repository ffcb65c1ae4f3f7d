"""Answer files that are gone or torn are found by the job as by verify, and answered again from their units."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipeline.plan import Plan, find_complete
from pipeline.run_folder.mend import find_gone, find_lost, lost_units, mend_run, retry_list, retry_marks, retry_name
from pipeline.run_folder.merge import Units, finish_run
from pipeline.run_folder.run import read_manifest, read_run
from pipeline.run_folder.units import to_sealed, write_unit
from pipeline.sources.reader import unit_reader
from pipeline.stages.generate import Generate, final_answers
from pipeline.stages.preprocess import Preprocess
from pipeline.storage import filesystem as fs
from pipeline.verify import verify_run
from tests.fakes import load_echo_engine
from tests.test_verify import run_without_ray


def three_files(folder: Path, **changes: object) -> tuple[Plan, Units]:
    """A complete run of 20 rows, the answers of each of its three units in a file of their own."""
    plan = run_without_ray(folder, finish=False, **changes)
    run = read_run(plan.settings.output)
    units = replace(plan.units(run["run"]), rows_a_file=8)
    finish_run(units, run["fingerprint"], {})
    return plan, units


def manifest_of(plan: Plan) -> dict[str, Any]:
    manifest = read_manifest(plan.settings.output)
    assert manifest is not None
    return manifest


def damage(file: Path, how: str) -> None:
    match how:
        case "gone":
            file.unlink()
        case "torn":
            file.write_bytes(file.read_bytes()[:-100])
        case "zeros":
            file.write_bytes(bytes(file.stat().st_size))
        case "one bit":
            data = bytearray(file.read_bytes())
            data[len(data) // 2] ^= 1
            file.write_bytes(data)


@pytest.mark.parametrize("how", ["gone", "torn", "zeros", "one bit"])
def test_a_lost_file_is_answered_again_and_no_other(tmp_path: Path, how: str) -> None:
    plan, units = three_files(tmp_path)
    file = tmp_path / "out" / "answers" / "part-00001.parquet"
    before = pq.read_table(file)
    damage(file, how)
    assert find_complete(plan) is None
    assert len([problem for problem in verify_run(units.folder) if "part-00001" in problem]) == 1
    lost = find_gone(units.folder, manifest_of(plan))
    assert lost_units(units, lost) == [1]

    preprocess, generate = Preprocess(plan.settings), Generate(plan.settings, load_echo_engine)
    answers = final_answers(generate(preprocess(unit_reader(plan.listing)(1))))
    write_unit(units.folder, units.run, 1, answers)
    mend_run(units, manifest_of(plan), lost)

    assert pq.read_table(file) == before
    assert verify_run(units.folder) == []
    summary = find_complete(plan)
    assert summary is not None
    assert (summary.rows, summary.errors) == (20, 1)
    assert manifest_of(plan)["mended"] == [{"files": ["answers/part-00001.parquet"], "rows": 8}]
    assert not fs.exists(f"{units.folder}/units")


def test_a_whole_run_has_lost_nothing(tmp_path: Path) -> None:
    plan, units = three_files(tmp_path)
    assert find_lost(units.folder, manifest_of(plan)) == []
    assert find_complete(plan) is not None


def test_what_a_stopped_retry_has_put_in_place_is_not_answered_again_but_named(tmp_path: Path, capsys) -> None:
    plan, units = three_files(tmp_path)
    fs.write_atomic(retry_list(units.folder, 1), b"rows")
    file = tmp_path / "out" / "answers" / "part-00001.parquet"
    table = pq.read_table(file)
    table = table.set_column(table.schema.get_field_index("attempt"), "attempt", [[2] * 8])
    file.write_bytes(to_sealed(table, retry_marks(retry_name(units.run, 1), "answers/part-00001.parquet")))
    assert [lost.by_retry for lost in find_lost(units.folder, manifest_of(plan))] == [True]
    assert find_complete(plan) is not None
    assert "retry-failed finishes it" in capsys.readouterr().err
    assert "retry-failed was stopped and finishes it" in verify_run(units.folder)[0]
    file.unlink()
    assert find_complete(plan) is None
