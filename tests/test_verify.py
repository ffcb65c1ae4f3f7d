"""verify: green for a whole run, and a line for each thing that is wrong with another."""

import hashlib
import json
import os
import re
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Timer

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from jobs.__main__ import main
from pipeline.plan import Plan, find_complete, plan_job
from pipeline.run_folder.merge import finish_run
from pipeline.run_folder.run import RunMismatch, begin_run, read_run, write_manifest
from pipeline.run_folder.units import done_units, to_parquet, unit_path, write_unit
from pipeline.sources.reader import unit_reader
from pipeline.stages.generate import Generate, final_answers
from pipeline.stages.preprocess import Preprocess
from pipeline.storage import filesystem as fs
from pipeline.verify import plan_of, verify_run
from schemas.answer import ADDED
from schemas.errors import Refused
from schemas.job import JobSettings
from tests.fakes import load_echo_engine
from tests.inputs import bad_row, good_row, write_parquet
from tests.tiny import checkpoint

pytest_plugins = ["tests.object_store"]


def run_without_ray(folder: Path, output: str | None = None, *, finish: bool = True, **changes: object) -> Plan:
    """A run of 20 rows in units of 8, one of them bad, answered in this process; one that was begun goes on."""
    source = folder / "in.parquet"
    if not source.exists():
        write_parquet(source, [bad_row(i, "decode") if i == 3 else good_row(i) for i in range(20)])
    base = {"input": (str(source),), "output": output or str(folder / "out"), "model": str(checkpoint())}
    settings = JobSettings.model_validate({**base, "unit_rows": 8, **changes})
    plan = plan_job("caption", settings, "Q?")
    run = begin_run(settings.output, plan.describe(), plan.listing.files)
    preprocess, generate = Preprocess(settings), Generate(settings, load_echo_engine)
    for unit in set(range(plan.listing.num_units)) - done_units(settings.output):
        answers = final_answers(generate(preprocess(unit_reader(plan.listing)(unit))), settings)
        write_unit(settings.output, run["run"], unit, answers)
    if finish:
        finish_run(plan.units(run["run"]), run["fingerprint"], {})
    return plan


def rewrite(folder: Path, change) -> None:
    """Change the one answer file, and the manifest with it, as a program with a mistake would."""
    path = folder / "out" / "answers" / "part-00000.parquet"
    data = to_parquet(change(pq.read_table(path)))
    path.write_bytes(data)
    manifest = json.loads((folder / "out" / ".run" / "manifest.json").read_text())
    manifest["files"][0] |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    write_manifest(str(folder / "out"), {name: one for name, one in manifest.items() if name != "sha256"})


def as_the_first_release_wrote_it(folder: Path) -> None:
    """Take from a complete run what came later: columns of its answers, and seals."""
    rewrite(folder, lambda answers: answers.drop_columns(ADDED))
    for name in (".run/run.json", ".run/manifest.json"):
        state = json.loads((folder / "out" / name).read_text())
        del state["sha256"]
        (folder / "out" / name).write_text(json.dumps({**state, "format": 1}))


def test_a_run_of_the_first_release_is_green_and_complete(tmp_path: Path) -> None:
    plan = run_without_ray(tmp_path, keep=("number",))
    as_the_first_release_wrote_it(tmp_path)
    assert verify_run(str(tmp_path / "out")) == []
    assert find_complete(plan) is not None


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="ids from a column"),
        pytest.param({"prompt": ("a=A?", "b=B?")}, id="several prompts"),
        pytest.param({"limit": 11, "keep": ("number",)}, id="limit and keep"),
        pytest.param({"id_column": "number"}, id="numbers as ids"),
        pytest.param({"num_answers": 3, "temperature": 1.0, "logprobs": 1}, id="several draws"),
        pytest.param({"num_answers": 2, "temperature": 1.0, "prompt": ("a=A?", "b=B?")}, id="of several prompts"),
    ],
)
def test_a_whole_run_is_green(tmp_path: Path, changes: dict[str, object]) -> None:
    run_without_ray(tmp_path, **changes)
    assert verify_run(str(tmp_path / "out")) == []


def test_a_draw_that_is_missing_is_named(tmp_path: Path) -> None:
    plan = run_without_ray(tmp_path, num_answers=3, temperature=1.0)
    assert plan.identity()["prompt_ids"] == ["prompt", "prompt.2", "prompt.3"]
    rewrite(tmp_path, lambda answers: answers.filter(pc.not_equal(answers["prompt_id"], "prompt.2")))
    problems = verify_run(str(tmp_path / "out"))
    assert any("'row-0' and prompt 'prompt.2' is missing" in problem for problem in problems)


@pytest.mark.parametrize("name", ["out", "out[1]", "deep/out?", "out#1 %20"])
def test_a_run_folder_inside_its_input_is_none_of_it(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(3):
        (folder / f"{i}.jpg").write_bytes(good_row(i)["image"]["bytes"])
    output = str(folder / name)
    plan = run_without_ray(tmp_path, output, input=(str(folder),))
    again = plan_job("caption", plan.settings, "Q?")
    assert again.identity() == plan.identity()
    assert "folders of runs" in again.listing.left_out
    assert find_complete(again) is not None
    assert verify_run(output) == []


@pytest.mark.parametrize(
    ("input", "output"),
    [("in", "in"), ("in", "in/../in/"), ("in/answers", "in"), ("in/link", "in"), ("in/input.parquet", "in")],
)
def test_what_a_job_writes_is_never_its_input(tmp_path: Path, input: str, output: str) -> None:
    (tmp_path / "in" / "answers").mkdir(parents=True)
    write_parquet(tmp_path / "in" / "input.parquet", [good_row(0)])
    (tmp_path / "in" / "link").symlink_to("answers")
    places = {"input": (f"{tmp_path}/{input}",), "output": f"{tmp_path}/{output}", "model": str(checkpoint())}
    with pytest.raises(Refused, match="must be another folder|must not be what this job writes"):
        plan_job("caption", JobSettings.model_validate(places), "Q?")


def test_rows_without_ids_and_image_files_are_green(tmp_path: Path) -> None:
    table = pa.Table.from_pylist([{"image": good_row(i)["image"]["bytes"]} for i in range(9)])
    pq.write_table(table, tmp_path / "in.parquet")
    run_without_ray(tmp_path)
    assert verify_run(str(tmp_path / "out")) == []
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(5):
        (folder / f"{i}.jpg").write_bytes(good_row(i)["image"]["bytes"])
    run_without_ray(tmp_path, str(tmp_path / "out2"), input=(str(folder),))
    assert verify_run(str(tmp_path / "out2")) == []


def test_a_run_in_an_object_store_is_green(tmp_path: Path, bucket: str) -> None:
    run_without_ray(tmp_path, f"{bucket}/out")
    assert verify_run(f"{bucket}/out") == []
    fs.write_atomic(f"{bucket}/out/answers/stranger.parquet", b"x")
    assert "not in the manifest" in verify_run(f"{bucket}/out")[0]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        pytest.param(lambda t: t.slice(1), "id 'row-0' and prompt 'prompt' is missing", id="lost"),
        pytest.param(lambda t: pa.concat_tables([t, t.slice(5, 1)]), "id 'row-5' .* once too often", id="twice"),
        pytest.param(lambda t: t.drop_columns(["text"]), "must begin with the columns", id="schema"),
        pytest.param(lambda t: t.slice(0, 0), "manifest.json says 20 rows, the answers have 0", id="empty"),
    ],
)
def test_a_row_that_is_lost_or_there_twice_is_named(tmp_path: Path, change, problem: str) -> None:
    run_without_ray(tmp_path)
    rewrite(tmp_path, change)
    found = "\n".join(verify_run(str(tmp_path / "out")))
    assert re.search(problem, found), found


def test_a_torn_answer_file_is_named(tmp_path: Path) -> None:
    run_without_ray(tmp_path)
    path = tmp_path / "out" / "answers" / "part-00000.parquet"
    path.write_bytes(path.read_bytes()[:-7])
    (problem,) = verify_run(str(tmp_path / "out"))
    assert "answers/part-00000.parquet is not the file that was written" in problem


def test_a_missing_answer_file_is_named(tmp_path: Path) -> None:
    run_without_ray(tmp_path)
    (tmp_path / "out" / "answers" / "part-00000.parquet").unlink()
    (problem,) = verify_run(str(tmp_path / "out"))
    assert problem == "answers/part-00000.parquet is missing; the run's command answers it again"


def test_a_run_whose_model_is_gone_can_be_verified(tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(checkpoint(), model)
    run_without_ray(tmp_path, model=str(model))
    shutil.rmtree(model)
    assert verify_run(str(tmp_path / "out")) == []


def test_an_input_that_is_gone_is_named(tmp_path: Path) -> None:
    run_without_ray(tmp_path)
    (tmp_path / "in.parquet").unlink()
    (problem,) = verify_run(str(tmp_path / "out"))
    assert "the input cannot be looked at any more: --input" in problem


def test_a_changed_input_is_named(tmp_path: Path) -> None:
    run_without_ray(tmp_path)
    write_parquet(tmp_path / "in.parquet", [good_row(i + 1) for i in range(20)])
    (problem,) = verify_run(str(tmp_path / "out"))
    assert "input file changed: " in problem


def damaged(path: Path) -> bytes:
    """The file as it was; now its first row group has no readable id, and nothing else of it shows that."""
    whole, times = path.read_bytes(), path.stat()
    path.write_bytes(whole[:4] + b"\xff" * 16 + whole[20:])
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    return whole


def test_rows_that_cannot_be_read_are_errors_and_counted_once(tmp_path: Path) -> None:
    source = write_parquet(tmp_path / "in.parquet", [good_row(i) for i in range(20)], group_rows=5)
    whole, times = damaged(source), source.stat()
    run_without_ray(tmp_path)
    answers = pq.read_table(tmp_path / "out" / "answers").to_pylist()
    assert [a["id"] for a in answers] == [f"in.parquet:{i}" for i in range(5)] + [f"row-{i}" for i in range(5, 20)]
    assert {a["error_stage"] for a in answers[:5]} == {"read"}
    assert verify_run(str(tmp_path / "out")) == []
    source.write_bytes(whole)  # mended: by now the rows have ids
    os.utime(source, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert verify_run(str(tmp_path / "out")) == []


def test_rows_that_cannot_be_read_any_more_are_named(tmp_path: Path) -> None:
    source = write_parquet(tmp_path / "in.parquet", [good_row(i) for i in range(20)], group_rows=5)
    run_without_ray(tmp_path)
    damaged(source)
    first, *_ = verify_run(str(tmp_path / "out"))
    assert first.startswith(f"ids of the input cannot be read any more: rows 0 to 4 of {source}")


def test_a_run_that_is_not_complete_says_so_and_names_torn_units(tmp_path: Path) -> None:
    plan = run_without_ray(tmp_path, finish=False)
    Path(unit_path(plan.settings.output, 1)).write_bytes(b"PAR1")
    problems = verify_run(str(tmp_path / "out"))
    assert "3 of 3 units are done" in problems[0]
    assert "unit-00000001.parquet is torn" in problems[1]


def test_a_run_is_verified_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    for name in ("here", "elsewhere"):
        (tmp_path / name).mkdir()
    write_parquet(tmp_path / "here" / "in.parquet", [good_row(i) for i in range(20)])
    monkeypatch.chdir(tmp_path / "here")
    plan = run_without_ray(tmp_path, "out", input=("in.parquet",))
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert main(["verify", "../here/out"]) == 0, capsys.readouterr().out
    absolute = plan.settings.model_copy(update={"input": (str(tmp_path / "here" / "in.parquet"),)})
    assert plan_job("caption", absolute, "Q?").identity() == plan.identity()


def test_a_run_whose_model_was_named_from_its_own_folder_is_the_same_run_from_any(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    shutil.copytree(checkpoint(), tmp_path / "here" / "model")
    monkeypatch.chdir(tmp_path / "here")
    plan = run_without_ray(tmp_path, model="model", image_root="pictures")
    monkeypatch.chdir(tmp_path)
    run = read_run(plan.settings.output)
    assert run is not None
    assert (run["settings"]["model"], run["settings"]["image_root"]) == (
        f"{tmp_path}/here/model",
        f"{tmp_path}/here/pictures",
    )
    assert plan_of(plan.settings.output, run).identity() == plan.identity()
    elsewhere = plan.settings.model_copy(update={"model": str(checkpoint())})  # as for a job that is submitted again
    assert plan_job("caption", elsewhere, "Q?").identity() == plan.identity()
    (tmp_path / "here" / "model" / "notes.txt").write_text("another file")
    assert plan_job("caption", plan.settings, "Q?").identity() != plan.identity()


def test_what_is_another_input_or_other_rows_is_another_run(tmp_path: Path) -> None:
    plan = run_without_ray(tmp_path)
    source, output = tmp_path / "in.parquet", plan.settings.output

    def said(**changes: object) -> str:
        wanted = plan_job("caption", plan.settings.model_copy(update=changes), "Q?")
        with pytest.raises(RunMismatch) as refusal:
            begin_run(output, wanted.describe(), wanted.listing.files)
        return str(refusal.value)

    assert "What differs: limit\n" in (limited := said(limit=30))
    assert "or add --continue-with-changes" in limited
    assert "keep cannot change within a folder, not even with --continue-with-changes" in said(keep=("number",))
    source.rename(tmp_path / "other.parquet")
    assert verify_run(output) == [f"the input cannot be looked at any more: --input {source}: {NOTHING_THERE}"]
    renamed = said(input=(str(tmp_path / "other.parquet"),))
    assert "input_layout cannot change within a folder" in renamed
    assert f"  input file removed: {source}\n" in renamed
    write_parquet(source, [good_row(i) for i in range(25)])
    assert verify_run(output) == [f"the input has changed since the run began: input file changed: {source}"]
    assert "input_layout, input_rows cannot change" in said()
    assert "input_layout cannot change" in said(limit=20)


NOTHING_THERE = "there is nothing of that name"


def test_a_run_that_comes_to_its_end_while_it_is_read_is_read_as_what_it_is(tmp_path: Path) -> None:
    plan = run_without_ray(tmp_path, finish=False, unit_rows=1)
    run, verdicts = read_run(plan.settings.output), set()
    assert run is not None
    for number in range(12):
        copy = tmp_path / f"copy-{number}"
        shutil.copytree(plan.settings.output, copy)
        units = replace(plan.units(run["run"]), folder=str(copy))
        ending = Timer(number * 0.01, finish_run, [units, run["fingerprint"], {}])
        ending.start()
        verdicts |= set(verify_run(str(copy)))
        ending.join()
        assert verify_run(str(copy)) == []
    assert all("units are done" in verdict for verdict in verdicts)


@pytest.mark.parametrize("data", [b"", b"PAR1", b"PAR1" + bytes(500) + b"PAR1"])
@pytest.mark.parametrize("name", ["units/unit-00000001.parquet", ".run/input.pq"])
def test_a_damaged_file_is_called_by_its_name(tmp_path: Path, name: str, data: bytes) -> None:
    run_without_ray(tmp_path, finish=False)
    path = tmp_path / "out" / name
    path.write_bytes(data)
    (problem,) = (one for one in verify_run(str(tmp_path / "out")) if "units are done" not in one)
    assert problem.startswith(f"{path} is torn or damaged")
    assert "Buffer" not in problem


@pytest.mark.parametrize("what", ["a folder", "a pipe", "a link to nothing"])
def test_what_is_no_file_in_the_place_of_answers_is_named(tmp_path: Path, what: str) -> None:
    plan = run_without_ray(tmp_path)
    path = tmp_path / "out" / "answers" / "part-00000.parquet"
    path.unlink()
    make = {
        "a folder": path.mkdir,
        "a pipe": partial(os.mkfifo, path),
        "a link to nothing": partial(path.symlink_to, "x"),
    }
    make[what]()
    (problem,) = verify_run(str(tmp_path / "out"))
    assert problem.startswith("answers/part-00000.parquet is ")
    assert find_complete(plan) is None


def test_the_command_gives_its_verdict_as_exit_status(tmp_path: Path, capsys) -> None:
    run_without_ray(tmp_path)
    assert main(["verify", str(tmp_path / "out")]) == 0
    assert "every answer is there, once" in capsys.readouterr().out
    (tmp_path / "out" / "answers" / "part-00000.parquet").unlink()
    assert main(["verify", str(tmp_path / "out")]) == 1
    assert main(["verify", str(tmp_path)]) == 2
    assert "must be a run folder with a .run/run.json" in capsys.readouterr().err
