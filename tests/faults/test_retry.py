"""retry-failed on a real Ray: the rows that failed, and no others, get new answers in their old places."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline.execution.executor import Loaders
from pipeline.job import run_job
from pipeline.plan import find_complete, plan_job
from pipeline.retry import Choice, retry_failed, with_settings
from pipeline.storage import filesystem as fs
from pipeline.verify import verify_run
from schemas.errors import Refused
from schemas.job import JobSettings
from tests.fakes import load_echo_engine, load_engine_that_counts
from tests.inputs import bad_row, good_row, picture, write_parquet
from tests.test_verify import as_the_first_release_wrote_it, run_without_ray
from tests.tiny import checkpoint

pytestmark = [pytest.mark.ray, pytest.mark.timeout(240), pytest.mark.usefixtures("cluster")]


def settings_for(source: Path, output: str, **changes: object) -> JobSettings:
    base = {"input": (str(source),), "output": output, "model": str(checkpoint())}
    return JobSettings.model_validate({**base, "max_error_rate": 1.0, "preprocess_workers": 1, **changes})


def test_failed_rows_are_tried_again_and_their_history_is_kept(tmp_path: Path) -> None:
    rows = [bad_row(i, {5: "fetch", 11: "decode", 30: "fetch"}.get(i, "")) for i in range(40)]
    source = write_parquet(tmp_path / "in.parquet", rows)
    out = str(tmp_path / "out")
    settings = settings_for(source, out, unit_rows=8, keep=("number",), prompt=("a=A?", "b=B?"))
    assert run_job(plan_job("caption", settings, "Q?"), load_echo_engine).errors == 6
    before = pq.read_table(f"{out}/answers").to_pylist()
    (tmp_path / "no" / "such").mkdir(parents=True)
    (tmp_path / "no" / "such" / "file.jpg").write_bytes(picture(1))  # what both rows could not fetch

    summary = retry_failed(out, Choice(stage="fetch"), Loaders(engine=load_echo_engine))

    after = pq.read_table(f"{out}/answers").to_pylist()
    assert (summary.rows, summary.ok, summary.errors) == (80, 78, 2)
    assert [(a["id"], a["prompt_id"], a["number"]) for a in after] == [
        (b["id"], b["prompt_id"], b["number"]) for b in before
    ]
    assert {a["number"]: a["attempt"] for a in after if a["attempt"] > 1} == {5: 2, 30: 2}
    assert [a for a in after if a["attempt"] == 1] == [b for b in before if b["number"] not in (5, 30)]
    kept = pq.read_table(f"{out}/.run/attempts").to_pylist()
    assert [(k["number"], k["prompt_id"], k["error_stage"], k["attempt"]) for k in kept] == [
        (number, prompt, "fetch", 1) for number in (5, 30) for prompt in ("a", "b")
    ]
    assert not (tmp_path / "out" / ".run" / "retry").exists()
    assert json.loads((tmp_path / "out" / ".run" / "manifest.json").read_text())["retries"][0]["now_ok"] == 4
    assert verify_run(out) == []

    again = retry_failed(out, Choice(), Loaders(engine=load_echo_engine))
    assert (again.errors, verify_run(out)) == (2, [])
    assert {a["number"] for a in pq.read_table(f"{out}/answers").to_pylist() if a["attempt"] == 2} == {5, 11, 30}


@pytest.mark.soak
def test_rows_of_a_run_of_the_first_release_are_tried_again(tmp_path: Path) -> None:
    out = run_without_ray(tmp_path).settings.output
    as_the_first_release_wrote_it(tmp_path)
    before = pq.read_table(f"{out}/answers").to_pylist()
    summary = retry_failed(out, Choice(), Loaders(engine=load_echo_engine))
    assert (summary.rows, summary.errors, verify_run(out)) == (20, 1, [])
    assert pq.read_table(f"{out}/answers").to_pylist() == [{**b, "attempt": 1 + (b["text"] is None)} for b in before]


@pytest.mark.soak
def test_a_retry_that_was_killed_before_its_manifest_is_mended_by_the_same_call(tmp_path: Path) -> None:
    source = write_parquet(tmp_path / "in.parquet", [good_row(0), bad_row(1, "fetch"), good_row(2)])
    out = str(tmp_path / "out")
    run_job(plan_job("caption", settings_for(source, out), "Q?"), load_echo_engine)
    manifest = fs.read_bytes(f"{out}/.run/manifest.json")
    (tmp_path / "no" / "such").mkdir(parents=True)
    (tmp_path / "no" / "such" / "file.jpg").write_bytes(picture(1))
    retry_failed(out, Choice(), Loaders(engine=load_echo_engine))
    fs.write_atomic(f"{out}/.run/manifest.json", manifest)  # as after a kill: answers are new, the manifest is old

    assert verify_run(out) != []
    summary = retry_failed(out, Choice(), Loaders(engine=load_echo_engine))
    assert (summary.ok, verify_run(out)) == (3, [])
    assert pq.read_table(f"{out}/answers")["attempt"].to_pylist() == [1, 2, 1]


@pytest.mark.soak
def test_chosen_answers_are_given_again_under_other_settings_as_a_recorded_change(tmp_path: Path) -> None:
    source = write_parquet(tmp_path / "in.parquet", [bad_row(i, "decode" if i == 1 else "") for i in range(3)])
    out = str(tmp_path / "out")
    plan = plan_job("caption", settings_for(source, out, max_new_tokens=5, prompt=("a=A?", "b=B?")), "Q?")
    run_job(plan, load_engine_that_counts)
    settings = {"max_new_tokens": 9}
    choice = Choice(finish_reason="length", prompt_id="a", settings=settings)
    assert retry_failed(out, choice, Loaders(engine=load_engine_that_counts)).errors == 2
    after = pq.read_table(f"{out}/answers").to_pylist()
    assert [(a["prompt_id"], a["attempt"], a["text"]) for a in after if a["status"] == "ok"] == [
        (prompt, 2 if prompt == "a" else 1, "9" if prompt == "a" else "5") for prompt in "abab"
    ]
    run = json.loads((tmp_path / "out" / ".run" / "run.json").read_text())
    assert [(change["retry"], change["settings"]) for change in run["changes"]] == [(1, settings)]
    assert run["settings"]["max_new_tokens"] == 5
    assert find_complete(plan) is not None  # the run is what it was asked
    assert verify_run(out) == []


@pytest.mark.soak
def test_a_text_stays_where_the_new_try_has_none(tmp_path: Path) -> None:
    source = write_parquet(tmp_path / "in.parquet", [good_row(i) for i in range(2)])
    out = str(tmp_path / "out")
    run_job(plan_job("caption", settings_for(source, out), "Q?"), load_echo_engine)
    before = pq.read_table(f"{out}/answers")
    choice = Choice(finish_reason="stop", settings={"max_image_bytes": 1})  # no image is so small
    assert retry_failed(out, choice, Loaders(engine=load_echo_engine)).errors == 0
    assert pq.read_table(f"{out}/answers") == before
    assert verify_run(out) == []


def test_settings_that_are_none_are_refused_before_anything_is_tried(tmp_path: Path) -> None:
    source = write_parquet(tmp_path / "in.parquet", [good_row(0)])
    settings = JobSettings(input=(str(source),), output=str(tmp_path / "out"), model=str(checkpoint()))
    with pytest.raises(Refused, match="min_new_tokens must be at most max_new_tokens"):
        with_settings(settings, {"min_new_tokens": 999})
    with pytest.raises(Refused, match="excludes --stage"):
        Choice(finish_reason="length", stage="fetch")


def test_a_run_that_is_not_complete_cannot_be_retried(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="OUT must be a complete run"):
        retry_failed(str(tmp_path), Choice(), Loaders(engine=load_echo_engine))
