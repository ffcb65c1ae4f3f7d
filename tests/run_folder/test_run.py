"""The run folder: begun once, resumed only as itself, complete exactly when its manifest is there."""

import hashlib
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.run_folder import run as run_module
from pipeline.run_folder.merge import BrokenUnits, Units, finish_run
from pipeline.run_folder.run import RunMismatch, begin_run, has_seals, read_manifest, read_run, record_found
from pipeline.run_folder.units import (
    BrokenUnit,
    Counts,
    ErrorType,
    count_answers,
    done_units,
    read_unit_answers,
    to_parquet,
    unit_path,
    write_unit,
)
from schemas.answer import ADDED, ANSWER_SCHEMA, Answer, answers_to_table, table_to_answers
from schemas.errors import Refused
from schemas.run import STATE
from tests.lines import Lines, each_line

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
    run = begin_run(str(folder), DESCRIPTION)
    for unit in range(units):
        write_unit(str(folder), run["run"], unit, some_answers(unit))
    return str(folder)


def finished(folder: str, num_units: int, rows_a_file: int = 1000, **more: bool) -> dict[str, object]:
    run = read_run(folder)
    name = run["run"]
    units = Units(
        folder=folder, run=name, num_units=num_units, answers_of=lambda unit: 3, rows_a_file=rows_a_file, **more
    )
    return finish_run(units, run["fingerprint"], {"seconds": 1.0})


def listing(**versions: str) -> pa.Table:
    rows = [
        {"url": url, "name": url, "size": 1, "version": version, "num_rows": 5} for url, version in versions.items()
    ]
    return pa.Table.from_pylist(rows)


def test_the_same_run_may_go_on(tmp_path: Path) -> None:
    first = begin_run(str(tmp_path), DESCRIPTION)
    other_placement = {**DESCRIPTION, "settings": {"gpus": 8}}
    assert begin_run(str(tmp_path), other_placement) == first


def test_of_two_drivers_that_begin_a_run_whichever_sleeps_at_which_line_both_have_the_same(tmp_path: Path) -> None:
    def run(number: int) -> Lines:
        folder, runs = str(tmp_path / str(number)), list[str]()

        def begin() -> None:
            runs.append(begin_run(folder, DESCRIPTION)["run"])

        lines = Lines((run_module,), number, begin)
        lines.run(begin)
        assert set(runs) == {read_run(folder)["run"]}
        return lines

    assert len(list(each_line(run))) > 20


def test_another_run_is_refused_with_what_differs(tmp_path: Path) -> None:
    begun(tmp_path)
    changed = {"identity": {"model": "demo", "prompt": ["Why?"]}}
    said = r"holds another run. What differs: prompt\n  prompt: \['What\?'\] there, \['Why\?'\] now"
    with pytest.raises(RunMismatch, match=said):
        begin_run(str(tmp_path), changed)


def test_a_unit_is_done_when_its_file_exists(tmp_path: Path) -> None:
    folder = begun(tmp_path)
    assert done_units(folder) == set()
    write_unit(folder, "me", 7, some_answers(7))
    (tmp_path / "units" / "unit-00000008.parquet.tmp").write_bytes(b"half")
    assert done_units(folder) == {7}


def test_writing_a_unit_again_changes_nothing(tmp_path: Path) -> None:
    folder = begun(tmp_path, units=1)
    before = Path(unit_path(folder, 0)).read_bytes()
    write_unit(folder, read_run(folder)["run"], 0, some_answers(0))
    assert Path(unit_path(folder, 0)).read_bytes() == before


def test_a_finished_run_holds_every_row_in_order_and_no_units(tmp_path: Path) -> None:
    folder = begun(tmp_path, units=4)
    manifest = finished(folder, 4)
    ids = pq.read_table(tmp_path / "answers")["id"].to_pylist()
    assert [id.split("-")[0] for id in ids] == [str(unit) for unit in range(4) for _ in range(3)]
    assert (manifest["rows"], manifest["ok"], manifest["errors"]) == (12, 8, 4)
    assert manifest["errors_by_type"] == [{"stage": "decode", "type": "BrokenImage", "rows": 4}]
    assert read_manifest(folder) == manifest
    assert not (tmp_path / "units").exists()


def test_the_manifest_names_each_file_with_its_hash(tmp_path: Path) -> None:
    folder = begun(tmp_path, units=2)
    (file,) = finished(folder, 2)["files"]
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
        finished(folder, 3)
    assert read_manifest(folder) is None


def test_a_merge_that_was_killed_is_repeated_whole(tmp_path: Path) -> None:
    folder = begun(tmp_path, units=2)
    (tmp_path / "answers").mkdir()
    (tmp_path / "answers" / "part-00000.parquet").write_bytes(b"of an earlier try")
    finished(folder, 2)
    assert pq.read_table(tmp_path / "answers").num_rows == 6


def test_answers_are_merged_into_files_of_a_good_size(tmp_path: Path) -> None:
    folder = begun(tmp_path, units=5)
    files = finished(folder, 5, rows_a_file=6)["files"]
    assert [file["rows"] for file in files] == [6, 6, 3]
    assert pq.read_table(tmp_path / "answers").num_rows == 15


def test_torn_and_foreign_units_are_named_and_nothing_is_complete(tmp_path: Path) -> None:
    folder = begun(tmp_path, units=4)
    Path(unit_path(folder, 1)).write_bytes(Path(unit_path(folder, 1)).read_bytes()[:-100])
    write_unit(folder, "other", 2, some_answers(2))
    Path(unit_path(folder, 3)).write_bytes(Path(unit_path(folder, 0)).read_bytes())
    with pytest.raises(BrokenUnits) as broken:
        finished(folder, 4)
    assert set(broken.value.units) == {1, 2, 3}
    assert read_manifest(folder) is None


def test_a_unit_that_the_storage_does_not_give_is_not_taken_for_torn(tmp_path: Path) -> None:
    Path(unit_path(str(tmp_path), 0)).mkdir(parents=True)
    with pytest.raises(OSError, match="is not a regular file"):
        read_unit_answers(str(tmp_path), "r", 0, 1)


def test_a_unit_with_too_few_answers_is_broken(tmp_path: Path) -> None:
    folder = begun(tmp_path, units=2)
    write_unit(folder, read_run(folder)["run"], 1, some_answers(1, rows=2))
    with pytest.raises(BrokenUnits, match="must have 3 answers, it has 2"):
        finished(folder, 2)


def test_an_answer_file_of_another_merge_does_not_stay(tmp_path: Path) -> None:
    folder = begun(tmp_path, units=1)
    (tmp_path / "answers").mkdir()
    (tmp_path / "answers" / "part-00007.parquet").write_bytes(b"of an earlier try")
    finished(folder, 1)
    assert [path.name for path in (tmp_path / "answers").iterdir()] == ["part-00000.parquet"]


def test_changed_added_and_removed_input_files_are_named(tmp_path: Path) -> None:
    begin_run(str(tmp_path), {"identity": {"input_hash": "1"}, "settings": {}}, listing(a="1", b="1", c="1"))
    with pytest.raises(RunMismatch) as refused:
        begin_run(str(tmp_path), {"identity": {"input_hash": "2"}}, listing(a="1", b="2", d="1"))
    said = str(refused.value)
    assert "input file added: d" in said
    assert "input file removed: c" in said
    assert "input file changed: b" in said
    assert "--continue-with-changes" in said


def test_of_another_commit_only_the_files_that_differ_are_named(tmp_path: Path) -> None:
    places = [{f"hf://datasets/a/b@{letter * 40}/{name}": version for name, version in files.items()}
              for letter, files in (("a", {"0": "x", "1": "y"}), ("b", {"0": "x", "1": "z"}))]  # fmt: skip
    begin_run(str(tmp_path), {"identity": {"input_hash": "1"}, "settings": {}}, listing(**places[0]))
    with pytest.raises(RunMismatch) as refused:
        begin_run(str(tmp_path), {"identity": {"input_hash": "2"}}, listing(**places[1]))
    named = [line for line in str(refused.value).splitlines() if "input file" in line and "@" in line]
    assert named == [f"  input file changed: hf://datasets/a/b@{'b' * 40}/1"]


def test_a_run_may_go_on_with_changes_that_are_recorded(tmp_path: Path) -> None:
    first = begin_run(str(tmp_path), DESCRIPTION)
    changed = {"identity": {"model": "demo", "prompt": ["Why?"]}}
    again = begin_run(str(tmp_path), changed, continue_with_changes=True)
    assert again["run"] == first["run"]
    assert again["changes"][0]["differences"] == ["prompt: ['What?'] there, ['Why?'] now"]
    assert begin_run(str(tmp_path), changed) == again


def test_what_a_row_stands_for_cannot_change_in_a_folder(tmp_path: Path) -> None:
    begin_run(str(tmp_path), {"identity": {"unit_rows": 8}, "settings": {}})
    with pytest.raises(RunMismatch, match="unit_rows cannot change within a folder"):
        begin_run(str(tmp_path), {"identity": {"unit_rows": 16}}, continue_with_changes=True)


def test_another_precision_than_the_one_it_began_with_is_refused(tmp_path: Path) -> None:
    folder = begun(tmp_path)
    record_found(folder, "precision", "bfloat16")
    record_found(folder, "precision", "bfloat16")
    with pytest.raises(RunMismatch, match="precision: 'bfloat16' there, 'float32' now"):
        record_found(folder, "precision", "float32")
    record_found(folder, "precision", "float32", continue_with_changes=True)
    assert read_run(folder)["settled"] == {"precision": "float32"}


def test_counts_add_up_by_type_with_a_few_examples() -> None:
    one = count_answers(some_answers(0, rows=4, failed=2))
    examples = ("0-bad0: m", "0-bad1: m", "0-bad0: m")
    kind = ErrorType(stage="decode", type="BrokenImage", rows=4, examples=examples)
    assert one + one == Counts(rows=8, errors=4, by_type=(kind,))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        pytest.param("", "must be JSON", id="empty"),
        pytest.param("null", "it is null", id="null"),
        pytest.param("[]", "it is a list", id="a list"),
        pytest.param("{}", "must have format 2", id="no keys"),
        pytest.param('{"format": 99}', "another release wrote it", id="a newer format"),
        pytest.param('{"format": 1}', "field required", id="keys missing"),
        pytest.param("[" * 100_000, "must be JSON", id="too deep"),
    ],
)
@pytest.mark.parametrize("name", ["run.json", "manifest.json"])
def test_a_state_file_of_the_wrong_shape_is_named(tmp_path: Path, name: str, content: str, said: str) -> None:
    folder = begun(tmp_path, units=1)
    finished(folder, 1)
    (tmp_path / STATE / name).write_text(content)
    with pytest.raises(RunMismatch, match=f"{name}.*{said}"):
        read_manifest(folder)


def test_an_edited_state_file_is_not_believed(tmp_path: Path) -> None:
    folder = begun(tmp_path, units=1)
    finished(folder, 1)
    path = tmp_path / STATE / "manifest.json"
    path.write_text(path.read_text().replace('"ok": 2', '"ok": 3'))
    with pytest.raises(RunMismatch, match="manifest.json is not as a run wrote it"):
        read_manifest(folder)


def test_a_manifest_of_another_run_is_refused(tmp_path: Path) -> None:
    folders = [begun(tmp_path / name, units=1) for name in ("a", "b")]
    for folder in folders:
        finished(folder, 1)
    (tmp_path / "a" / STATE / "manifest.json").write_bytes((tmp_path / "b" / STATE / "manifest.json").read_bytes())
    with pytest.raises(RunMismatch, match="of another"):
        read_manifest(folders[0])


@pytest.mark.parametrize("left", ["manifest.json", "units/unit-00000000.parquet"])
def test_a_folder_whose_run_json_is_gone_is_neither_complete_nor_free(tmp_path: Path, left: str) -> None:
    folder = begun(tmp_path, units=1)
    if left == "manifest.json":
        finished(folder, 1)
    (tmp_path / STATE / "run.json").unlink()
    with pytest.raises(RunMismatch, match="no run.json"):
        begin_run(folder, DESCRIPTION)


@pytest.mark.parametrize("part", [".run", ".run/", "units", "answers/mine", ".run/retry", ".run/errors/x"])
def test_what_a_run_keeps_its_own_files_in_is_no_run_folder(tmp_path: Path, part: str) -> None:
    folder = begun(tmp_path / "out", units=1)
    with pytest.raises(Refused, match=f"{part.rstrip('/')}.* must not be in what the run in {folder} keeps"):
        begin_run(f"{folder}/{part}", DESCRIPTION)
    assert read_run(f"{folder}/{part}") is None


def test_links_and_runs_of_the_first_release_make_no_difference_and_other_names_are_free(tmp_path: Path) -> None:
    folder = Path(begun(tmp_path / "out"))
    (tmp_path / "link").symlink_to(folder / STATE)
    with pytest.raises(Refused, match="must not be in"):
        begin_run(str(tmp_path / "link"), DESCRIPTION)
    begun(folder / "other")
    begun(tmp_path / "units")
    (folder / STATE).rename(tmp_path / "state")
    for name in ("run.json", "input.parquet"):
        (folder / name).write_bytes((tmp_path / "state" / "run.json").read_bytes())
    with pytest.raises(Refused, match="must not be in"):
        begin_run(str(folder / "attempts"), DESCRIPTION)


def test_a_folder_of_the_first_release_is_read(tmp_path: Path) -> None:
    folder = begun(tmp_path)
    run = read_run(folder)
    old = {**run, "format": 1}
    (tmp_path / STATE / "run.json").write_text(json.dumps(old))
    found = read_run(folder)
    assert found["run"] == run["run"]
    assert not has_seals(found)
    assert has_seals(run)


def test_units_of_the_first_release_are_merged_with_those_of_this_one(tmp_path: Path) -> None:
    folder = begun(tmp_path, units=2)
    old = some_answers(0).drop_columns(ADDED).append_column("kept", pa.array([7, 8, 9]))
    write_unit(folder, read_run(folder)["run"], 0, old)
    write_unit(folder, read_run(folder)["run"], 1, some_answers(1).append_column("kept", pa.array([1, 2, 3])))
    finished(folder, 2, sealed=False)
    merged = pq.read_table(tmp_path / "answers")
    assert merged.schema.names == [*ANSWER_SCHEMA.names, "kept"]
    assert merged["kept"].to_pylist() == [7, 8, 9, 1, 2, 3]
    assert table_to_answers(merged) == [*table_to_answers(some_answers(0)), *table_to_answers(some_answers(1))]


def test_a_unit_with_another_column_than_its_run_is_broken(tmp_path: Path) -> None:
    answers = some_answers(0)
    write_unit(str(tmp_path), "r", 0, answers.append_column("extra", pa.array([1, 2, 3])))
    with pytest.raises(BrokenUnit, match="it has 'extra' \\(int64\\) where no column must be"):
        read_unit_answers(str(tmp_path), "r", 0, 3, answers.schema)


def test_only_units_in_their_own_folder_under_their_own_name_are_done(tmp_path: Path) -> None:
    folder = begun(tmp_path, units=2)
    units = tmp_path / "units"
    (units / "bak").mkdir()
    (units / "unit-00000001.parquet").rename(units / "bak" / "unit-00000001.parquet")
    (units / "unit-2.parquet").write_bytes(b"")
    assert done_units(folder) == {0}


def test_a_unit_of_the_first_release_is_read_where_its_run_is(tmp_path: Path) -> None:
    marks = {b"llava_batch_run": b"r", b"llava_batch_unit": b"0"}
    Path(unit_path(str(tmp_path), 0)).parent.mkdir()
    Path(unit_path(str(tmp_path), 0)).write_bytes(to_parquet(some_answers(0).replace_schema_metadata(marks)))
    assert read_unit_answers(str(tmp_path), "r", 0, 3, sealed=False).equals(some_answers(0))
    with pytest.raises(BrokenUnit, match="it has no seal"):
        read_unit_answers(str(tmp_path), "r", 0, 3)
