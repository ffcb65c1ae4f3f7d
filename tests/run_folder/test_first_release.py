"""Folders that the first release wrote are read by all that reads a folder: no seals, fewer columns, format 1."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline.exports.export import ExportOptions, export
from pipeline.plan import Plan, find_complete, summarise
from pipeline.reports.outcome import describe_outcome
from pipeline.reports.report import write_report
from pipeline.retry import Choice, SomeRows, begin_retry
from pipeline.run_folder.lock import hold
from pipeline.run_folder.mend import find_gone
from pipeline.run_folder.merge import finish_run
from pipeline.run_folder.run import begin_run, read_manifest, read_run, record_retry, write_manifest
from pipeline.run_folder.units import read_answers, to_parquet, unit_path, write_unit
from pipeline.sources.reader import unit_reader
from pipeline.stages.generate import Generate, final_answers
from pipeline.stages.preprocess import Preprocess
from pipeline.storage import filesystem as fs
from pipeline.verify import verify_run
from schemas.answer import ADDED, ANSWER_SCHEMA
from schemas.run import STATE
from tests.fakes import load_echo_engine
from tests.run_folder.test_mend import damage, manifest_of
from tests.test_verify import run_without_ray

STATES = ("run.json", "manifest.json")


def put_state_beside_answers(folder: Path) -> None:
    for path in (folder / STATE).iterdir():
        path.rename(folder / path.name.replace(".pq", ".parquet"))
    (folder / STATE).rmdir()


def as_the_first_release_wrote_it(folder: Path) -> None:
    """Take from a folder what that release did not know."""
    put_state_beside_answers(folder)
    for path in (folder / "answers").glob("*.parquet"):
        path.write_bytes(to_parquet(read_answers(path.read_bytes()).drop_columns(list(ADDED))))
    run = json.loads((folder / "run.json").read_text())["run"]
    for number, path in enumerate(sorted((folder / "units").glob("*.parquet"))):
        marks = {"llava_batch_run": run, "llava_batch_unit": str(number)}
        old = read_answers(path.read_bytes()).drop_columns(list(ADDED))
        path.write_bytes(to_parquet(old.replace_schema_metadata(marks)))
    for path in (folder / name for name in STATES if (folder / name).exists()):
        state: dict[str, Any] = {**json.loads(path.read_text()), "format": 1}
        for file in state.get("files", []):
            data = (folder / file["path"]).read_bytes()
            file |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        path.write_text(json.dumps({name: one for name, one in state.items() if name != "sha256"}, indent=2))


@pytest.fixture
def old(tmp_path: Path) -> Plan:
    plan = run_without_ray(tmp_path, keep=("number",))
    as_the_first_release_wrote_it(tmp_path / "out")
    return plan


def test_a_complete_folder_is_verified_reported_and_found_complete(old: Plan) -> None:
    folder = old.settings.output
    assert verify_run(folder) == []
    assert find_complete(old) is not None
    said = describe_outcome(summarise(manifest_of(old), folder, None))
    assert said.startswith("done     19 of 20 answers")
    assert "failed   1 BrokenImage at decode, as row-3" in said


@pytest.mark.parametrize("how", ["gone", "torn", "one bit"])
def test_what_is_lost_of_it_is_found_by_its_hash(old: Plan, how: str) -> None:
    damage(Path(old.settings.output, "answers", "part-00000.parquet"), how)
    assert [lost.path for lost in find_gone(old.settings.output, manifest_of(old))] == ["answers/part-00000.parquet"]
    assert len(verify_run(old.settings.output)) == 1


def retried(plan: Plan, choice: Choice) -> list[int]:
    """The attempts of all answers after a retry of these rows, answered in this process."""
    run = read_run(plan.settings.output)
    assert run is not None
    retry = begin_retry(plan, run, manifest_of(plan), choice)
    assert retry is not None
    preprocess, generate = Preprocess(plan.settings), Generate(plan.settings, load_echo_engine)
    for unit in retry.rows:
        answers = final_answers(generate(preprocess(SomeRows(unit_reader(plan.listing), retry.rows)(unit))))
        write_unit(retry.units.folder, retry.units.run, unit, answers)
    retry.finish(manifest_of(plan))
    attempts: list[int] = pq.read_table(f"{plan.settings.output}/answers")["attempt"].to_pylist()
    return attempts


@pytest.mark.parametrize(
    ("choice", "again"), [(Choice(), {3}), (Choice(finish_reason="stop"), set(range(20)) - {3})], ids=["failed", "good"]
)
def test_its_rows_are_tried_again_in_the_columns_that_it_has(old: Plan, choice: Choice, again: set[int]) -> None:
    columns = pq.read_table(f"{old.settings.output}/answers").column_names
    assert retried(old, choice) == [2 if row in again else 1 for row in range(20)]
    assert verify_run(old.settings.output) == []
    assert pq.read_table(f"{old.settings.output}/answers").column_names == columns
    assert set(ANSWER_SCHEMA.names) - set(columns) == set(ADDED)


def test_a_new_try_that_fails_leaves_an_old_text_in_its_columns(old: Plan, tmp_path: Path) -> None:
    before = pq.read_table(tmp_path / "out" / "answers")
    small = old.settings.model_copy(update={"max_image_bytes": 1})  # no image is so small
    retried(replace(old, settings=small), Choice(finish_reason="stop"))
    assert pq.read_table(tmp_path / "out" / "answers") == before


def test_a_retry_that_the_first_release_was_stopped_in_is_finished(old: Plan) -> None:
    folder, manifest = old.settings.output, manifest_of(old)
    part = Path(folder, "answers", "part-00000.parquet")
    before = part.read_bytes()
    record_retry(folder, 1, {})
    run = read_run(folder)
    assert run is not None
    retry = begin_retry(old, run, manifest, Choice())
    assert retry is not None
    listed = read_answers(Path(retry.history).read_bytes()).replace_schema_metadata(None)
    fs.write_atomic(retry.history, to_parquet(listed))  # unsealed, as that release wrote it
    table = read_answers(before)
    number = table.schema.get_field_index("attempt")
    attempts = np.where(np.arange(20) == 3, 2, 1).astype(np.int32)
    part.write_bytes(to_parquet(table.set_column(number, table.schema.field(number), [attempts])))
    assert find_gone(folder, manifest) == []
    assert retried(old, Choice()) == attempts.tolist()
    assert verify_run(folder) == []


def test_units_that_it_left_are_merged_with_new_ones(tmp_path: Path) -> None:
    plan = run_without_ray(tmp_path, finish=False)
    as_the_first_release_wrote_it(tmp_path / "out")
    (problem,) = verify_run(plan.settings.output)
    assert "3 of 3 units are done" in problem
    Path(unit_path(plan.settings.output, 1)).write_bytes(b"PAR1")
    assert "unit-00000001.parquet is torn" in verify_run(plan.settings.output)[1]


def test_a_folder_is_written_in_the_format_of_now_once_it_is_written_at_all(old: Plan) -> None:
    folder = old.settings.output
    write_manifest(folder, manifest_of(old))
    state = json.loads(Path(folder, "manifest.json").read_text())
    assert (state["format"], "sha256" in state) == (2, True)
    assert read_manifest(folder) is not None
    assert verify_run(folder) == []


def test_it_is_exported_and_shown_on_a_page(old: Plan, tmp_path: Path) -> None:
    folder = old.settings.output
    export(folder, str(tmp_path / "out.jsonl"), "jsonl", ExportOptions())
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 20
    write_report(folder)
    assert Path(folder, "report.html").exists()
    assert not Path(folder, STATE).exists()


def test_a_folder_whose_state_is_beside_the_answers_goes_on_and_keeps_it_there(tmp_path: Path) -> None:
    plan = run_without_ray(tmp_path, finish=False)
    folder = plan.settings.output
    put_state_beside_answers(Path(folder))
    run = begin_run(folder, plan.describe(), plan.listing.files)
    with hold(folder):
        assert Path(folder, "driver.lock").exists()
        finish_run(plan.units(run["run"]), run["fingerprint"], {})
    assert verify_run(folder) == []
    assert find_complete(plan) is not None
    assert {path.name for path in Path(folder).iterdir()} == {"README.md", "answers", "input.parquet", *STATES}
