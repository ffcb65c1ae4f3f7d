"""Whole jobs in stores, on real servers of this machine: read and written there, killed, throttled, refused; without
Ray."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from s3fs import S3FileSystem

from jobs.__main__ import main
from pipeline.plan import plan_job
from pipeline.preflight import check_writable
from pipeline.run_folder.lock import FolderInUse, hold
from pipeline.run_folder.merge import finish_run
from pipeline.run_folder.run import begin_run
from pipeline.run_folder.units import unit_path, write_unit
from pipeline.sources.reader import unit_reader
from pipeline.stages.generate import Generate, final_answers
from pipeline.stages.preprocess import Preprocess
from pipeline.storage import filesystem as fs
from pipeline.verify import verify_run
from schemas.errors import Refused
from schemas.job import JobSettings
from tests.fakes import load_echo_engine
from tests.inputs import picture
from tests.test_verify import run_without_ray
from tests.tiny import checkpoint

if TYPE_CHECKING:
    from tests.flaky_store import Proxy

pytest_plugins = ["tests.object_store", "tests.stores", "tests.flaky_store"]

MANY = 2000


def put_parquet(url: str, columns: dict[str, Any]) -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink, row_group_size=5)
    fs.write_atomic(url, sink.getvalue().to_pybytes())


def put_pictures(bucket: str, num: int) -> None:
    """A table of so many pictures, each an object of its own."""
    urls = [f"{bucket}/pictures/{number}.jpg" for number in range(num)]
    for number, url in enumerate(urls):
        fs.write_atomic(url, picture(number))
    put_parquet(f"{bucket}/in.parquet", {"id": list(map(str, range(num))), "image": urls})


def answers_of(output: str) -> list[dict[str, Any]]:
    files = fs.list_folder(f"{output}/answers", (".parquet",))
    return [row for file in files for row in pq.read_table(pa.BufferReader(fs.read_bytes(file.url))).to_pylist()]


def assert_all_answered(output: str, ids: list[str]) -> None:
    answers = answers_of(output)
    assert [answer["id"] for answer in answers] == ids
    assert {(answer["status"], answer["error_message"]) for answer in answers} == {("ok", None)}
    assert verify_run(output) == []


@pytest.mark.soak
def test_a_job_reads_and_writes_a_store_is_killed_goes_on_and_is_exported(bucket_of: str, tmp_path: Path) -> None:
    put_pictures(bucket_of, 20)
    asked = {"input": (f"{bucket_of}/in.parquet",), "output": f"{bucket_of}/out", "prompt": ("Q?",)}
    check_writable(asked["output"])
    with hold(asked["output"]):
        run_without_ray(tmp_path, finish=False, **asked)
        fs.delete(unit_path(asked["output"], 1))
        with pytest.raises(FolderInUse), hold(asked["output"]):
            pass
    (problem,) = verify_run(asked["output"])
    assert "2 of 3 units are done" in problem
    with hold(asked["output"]):
        run_without_ray(tmp_path, **asked)
    assert_all_answered(asked["output"], list(map(str, range(20))))
    for to, name in (("jsonl", "answers.jsonl"), ("webdataset", "shards"), ("dataset", "dataset")):
        assert main(["export", asked["output"], f"{bucket_of}/{name}", "--to", to]) == 0
    assert fs.read_bytes(f"{bucket_of}/answers.jsonl").count(b"\n") == 20
    assert main(["report", asked["output"]]) == 0
    assert fs.read_bytes(f"{asked['output']}/.run/report.html", 15) == b"<!doctype html>"
    left = [file.url.removeprefix(f"{fs.absolute(bucket_of)}/out/") for file in fs.list_folder(asked["output"])]
    assert left == ["answers/part-00000.parquet"]


@pytest.mark.soak
def test_pictures_of_a_store_are_an_input(bucket_of: str, tmp_path: Path) -> None:
    put_pictures(bucket_of, 12)
    run_without_ray(tmp_path, input=(f"{bucket_of}/pictures",), output=f"{bucket_of}/out", prompt=("Q?",))
    assert_all_answered(f"{bucket_of}/out", sorted(f"{number}.jpg" for number in range(12)))


@pytest.mark.soak
def test_an_object_that_vanishes_costs_its_row_and_a_table_its_rows(bucket_of: str) -> None:
    put_pictures(bucket_of, 8)
    more, output = f"{bucket_of}/more.parquet", f"{bucket_of}/out"
    put_parquet(more, {"id": ["x", "y"], "image": [f"{bucket_of}/pictures/{number}.jpg" for number in (1, 2)]})
    settings = {"input": (f"{bucket_of}/in.parquet", more), "output": output, "model": str(checkpoint())}
    settings |= {"unit_rows": 8, "prompt": ("Q?",)}
    plan = plan_job("caption", JobSettings.model_validate(settings), "Q?")
    run = begin_run(output, plan.describe(), plan.listing.files)
    fs.delete(f"{bucket_of}/pictures/3.jpg")
    fs.delete(more)
    read, preprocess = unit_reader(plan.listing), Preprocess(plan.settings)
    for unit in range(plan.listing.num_units):
        answers = final_answers(Generate(plan.settings, load_echo_engine)(preprocess(read(unit))))
        write_unit(output, run["run"], unit, answers)
    assert finish_run(plan.units(run["run"]), run["fingerprint"], {})["rows"] == 10
    failed = [(one["id"], one["error_stage"], one["error_type"]) for one in answers_of(output) if one["error_type"]]
    lost = [(f"more.parquet:{row}", "read", "FileNotFound") for row in (0, 1)]
    assert failed == [("3", "fetch", "FileNotFound"), *lost]
    assert verify_run(output) != []  # a file of the input is gone, and it says so


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_two_thousand_objects_of_a_store_that_throttles_are_all_answered(proxy: "Proxy", tmp_path: Path) -> None:
    """Every third request fails (503, a broken answer, slow) for half of the job; then each object is read once."""
    filesystem, key = fs.remote("s3://flaky/pictures")
    filesystem.pipe({f"{key}/{number:04}.jpg": picture(number % 50) for number in range(MANY)})
    output, settings = "s3://flaky/out", {"model": str(checkpoint()), "unit_rows": 250, "prompt": ("Q?",)}
    proxy.throttles = True
    asked = JobSettings.model_validate({"input": ("s3://flaky/pictures",), "output": output, **settings})
    with hold(output):
        plan = plan_job("caption", asked, "Q?")
        run = begin_run(output, plan.describe(), plan.listing.files)
        read, preprocess = unit_reader(plan.listing), Preprocess(plan.settings)
        generate = Generate(plan.settings, load_echo_engine)
        for unit in range(8):
            if unit == 4:
                proxy.throttles = False
                proxy.asked.clear()
            write_unit(output, run["run"], unit, final_answers(generate(preprocess(read(unit)))))
    assert len(proxy.failed) > MANY / 8
    assert sum(line.startswith("GET ") and ".jpg" in line for line in proxy.asked) == MANY / 2
    proxy.throttles = True
    finish_run(plan.units(run["run"]), run["fingerprint"], {})
    assert_all_answered(output, [f"{number:04}.jpg" for number in range(MANY)])


ASKING = [
    ["caption", "--input", "s3://guarded/in.parquet", "--output", "o", "--prompt", "Q?"],
    ["caption", "--input", "s3://guarded/", "--output", "o", "--prompt", "Q?", "--dry-run"],
    ["caption", "--input", ".", "--output", "s3://guarded/out", "--prompt", "Q?"],
    ["caption", "--input", ".", "--output", "s3://guarded/out", "--prompt", "Q?", "--dry-run"],
    ["verify", "s3://guarded/out"],
    ["retry-failed", "s3://guarded/out"],
    ["report", "s3://guarded/out"],
    ["export", "s3://guarded/out", "a.jsonl", "--to", "jsonl"],
]


@pytest.mark.soak
def test_a_wrong_secret_is_one_line_that_names_the_object_before_anything_starts(
    guarded: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.jpg").write_bytes(picture(1))
    right = os.environ["AWS_SECRET_ACCESS_KEY"]
    os.environ["AWS_SECRET_ACCESS_KEY"] = "WRONG-SECRET"
    S3FileSystem.clear_instance_cache()
    for command in ASKING:
        assert main(command) == 2, command
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ")
        assert "s3://guarded/" in line
        assert "WRONG-SECRET" not in line
        assert right not in line
    assert os.listdir(tmp_path) == ["a.jpg"]
    os.environ["AWS_SECRET_ACCESS_KEY"] = right
    S3FileSystem.clear_instance_cache()
    check_writable(f"{guarded}/out")
    assert [file.url for file in fs.list_folder(guarded)] == [f"{guarded}/a.bin"]


def test_an_output_in_a_bucket_that_is_not_there_is_refused(store: str) -> None:
    with pytest.raises(Refused, match=r"--output must be .*, s3://no-such-bucket/out cannot be .*bucket"):
        check_writable("s3://no-such-bucket/out")
