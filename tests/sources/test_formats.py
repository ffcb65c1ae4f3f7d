"""Every format by the front door: the commands of docs/inputs.md, and whole runs that are verified."""

import importlib.util
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from jobs.__main__ import main
from pipeline.plan import plan_job
from pipeline.run_folder.layout import state_folder
from pipeline.run_folder.units import unit_path
from pipeline.sources.index_store import keep_index
from pipeline.verify import verify_run
from tests.hub import serving
from tests.sources.samples import write_all
from tests.test_verify import run_without_ray
from tests.tiny import checkpoint

PAGE = (Path(__file__).parents[2] / "docs/inputs.md").read_text(encoding="utf-8")
ALL = re.findall(r"^llava-batch (.*)$", PAGE, re.MULTILINE)
DELTA = pytest.mark.skipif(importlib.util.find_spec("deltalake") is None, reason="needs deltalake")
LANCE = pytest.mark.skipif(importlib.util.find_spec("lance") is None, reason="needs lance: llava-batch[lance]")
MARKS = {"delta": [DELTA], ".lance": [LANCE]}
ALL_COMMANDS = [
    pytest.param(one, id=one, marks=next((MARKS[part] for part in MARKS if part in one), [])) for one in ALL
]
COMMANDS = [one for one in ALL_COMMANDS if "hf://" not in str(one.id)]  # a hub is for processes of their own


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    write_all(folder)
    return folder


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_page_finds_four_rows_and_can_answer_all(
    inputs: Path, command: str, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(inputs)
    assert main([*shlex.split(command), "--model", str(checkpoint()), "--dry-run"]) == 0
    shown = capsys.readouterr().err
    assert " 4 rows of " in shown
    assert "error at" not in shown


RUNS = {
    "table.parquet": ["1", "2", "3", "4"],
    "saved": ["1", "2", "3", "4"],
    "photos": [f"cats/{n}.jpg" for n in range(1, 5)],
    "described": [f"{n}.jpg" for n in range(1, 5)],
    "question.jsonl.gz": ["1", "2", "3", "4"],
    "conversations.json": ["1", "2", "3", "4"],
    "batch.jsonl": ["r1", "r2", "r3", "r4"],
    "table.csv": ["001", "002", "003", "004"],
    "bench.tsv": ["1", "2", "3", "4"],
    "list.txt": [f"photos/cats/{n}.jpg" for n in range(1, 5)],
    "shards": ["000000001", "000000002", "000010003", "000010004"],
}


ASKING = ("conversations.json", "batch.jsonl", "bench.tsv")  # inputs whose rows ask themselves


def settings_for(inputs: Path, name: str) -> dict[str, object]:
    changes: dict[str, object] = {} if name in ASKING else {"prompt": ("Q?",)}
    if name in ("question.jsonl.gz", "conversations.json"):
        changes["image_root"] = str(inputs / "photos")
    return {"input": (str(inputs / name),), "unit_rows": 3, **changes}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_has_the_rows_of_its_input_is_verified_and_cut_again_alike(
    inputs: Path, tmp_path: Path, name: str
) -> None:
    plan = run_without_ray(tmp_path, **settings_for(inputs, name))
    answers = pq.read_table(tmp_path / "out/answers").to_pylist()
    assert [answer["id"] for answer in answers] == RUNS[name]
    assert {answer["status"] for answer in answers} == {"ok"}
    assert verify_run(str(tmp_path / "out")) == []
    again = plan_job("caption", plan.settings, "Q?")
    assert again.identity() == plan.identity()
    assert again.listing.row_ranges.equals(plan.listing.row_ranges)


@pytest.mark.parametrize("name", RUNS)
def test_a_run_that_was_killed_goes_on_to_the_answers_of_one_that_was_not(
    inputs: Path, tmp_path: Path, name: str
) -> None:
    """The second driver lists the input anew, with the index that the first has left, and answers what is not done."""
    for folder in ("whole", "killed"):
        (tmp_path / folder).mkdir()
    run_without_ray(tmp_path / "whole", **settings_for(inputs, name))
    plan = run_without_ray(tmp_path / "killed", finish=False, **settings_for(inputs, name))
    Path(unit_path(plan.settings.output, 1)).unlink()
    keep_index(state_folder(plan.settings.output), plan.listing.files, plan.listing.listed)
    (problem,) = verify_run(plan.settings.output)
    assert "1 of 2 units are done" in problem
    run_without_ray(tmp_path / "killed", **settings_for(inputs, name))
    whole, killed = (pq.read_table(tmp_path / folder / "out/answers") for folder in ("whole", "killed"))
    assert killed.equals(whole)
    assert verify_run(plan.settings.output) == []


@pytest.fixture
def hub(inputs: Path, tmp_path: Path) -> Iterator[dict[str, str]]:
    """What a process is told that finds the dataset of the page on the hub."""
    with serving(tmp_path / "hub-home") as served:
        table = (inputs / "table.parquet").read_bytes()
        served.push("owner/name", {"data/train-0.parquet": table, "data/test-0.parquet": table})
        yield served.environment()


@pytest.mark.ray
@pytest.mark.soak
@pytest.mark.timeout(900)
@pytest.mark.parametrize("command", ALL_COMMANDS)
def test_a_command_of_the_page_is_a_whole_job_that_is_killed_and_goes_on(
    inputs: Path, tmp_path: Path, hub: dict[str, str], command: str
) -> None:
    """On a Ray of its own, which is killed with its driver once the first unit is there."""
    out = tmp_path / "out"
    words = [str(out) if word == "out" else word for word in shlex.split(command)]
    words += ["--model", str(checkpoint()), "--unit-rows", "1", "--gpus", "0"]
    argv = [sys.executable, "-m", "jobs", *words, *([] if "--max-new-tokens" in words else ["--max-new-tokens", "2"])]
    here = (str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")]))
    there = {**os.environ, **hub, "PYTHONPATH": os.pathsep.join(here)}
    with open(tmp_path / "log", "wb") as log:
        driver = subprocess.Popen(argv, cwd=inputs, env=there, stdout=log, stderr=log, start_new_session=True)
        while driver.poll() is None and not list(out.glob("units/*.parquet")):
            time.sleep(0.05)
        os.killpg(driver.pid, signal.SIGKILL)
        driver.wait()
    done = subprocess.run(argv, cwd=inputs, env=there, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert pq.read_table(out)["status"].to_pylist() == ["ok"] * 4
    verified = [sys.executable, "-m", "jobs", "verify", str(out)]
    assert subprocess.run(verified, cwd=inputs, env=there, check=False).returncode == 0
