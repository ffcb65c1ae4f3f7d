"""hf:// paths as people give them: found, listed, read by ranges, held to a commit, and refused in a line.

What opens them is a process of its own, which finds the hub of this machine in its environment.
"""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs.benchmarks import BENCHMARKS
from tests.adapters import attention_pairs, write_adapter
from tests.hub import TOKEN, Hub, serving
from tests.inputs import good_row, write_parquet
from tests.jobs.benchmarks.test_benchmarks import CASES, Case
from tests.tiny import checkpoint

ROOT = Path(__file__).parents[2]
DATA = {benchmark.name: benchmark.data for benchmark in BENCHMARKS}
PUBLISHED = [case for case in CASES if case.name != "own"]

READ_ALL = """
import hashlib, json, sys
from jobs.benchmarks import BENCHMARKS
for benchmark in BENCHMARKS:
    if benchmark.name != "own":
        asked = [(q.id, q.prompt, [hashlib.sha256(i).hexdigest() for i in q.images]) for q in benchmark.read()]
        print(json.dumps([benchmark.name, asked]))
"""
RUN_EACH = """
import io, json, sys
from contextlib import redirect_stderr, redirect_stdout
from jobs.__main__ import main
for argv in json.loads(sys.argv[1]):
    said = io.StringIO()
    with redirect_stderr(said), redirect_stdout(io.StringIO()):
        status = main(argv)
    print(json.dumps([status, said.getvalue()]))
"""


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    """A hub with nothing in it."""
    with serving(tmp_path / "hub-home") as found:
        yield found


def run(hub: Hub, code: str, *arguments: str, token: str | None = None) -> list[Any]:
    """What a process that knows this hub prints, a JSON value a line."""
    there = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "RAY_"))}
    command = [sys.executable, "-c", code, *arguments]
    environment = {**there, **hub.environment(token)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def main_each(hub: Hub, commands: Sequence[Sequence[str]], token: str | None = None) -> list[tuple[int, str]]:
    """The exit status of each command line, and what it said."""
    return [(status, said) for status, said in run(hub, RUN_EACH, json.dumps(commands), token=token)]


def publish(hub: Hub, case: Case, folder: Path) -> str:
    """Push a benchmark's files, called as its default data is; the commit."""
    owner, name, *below = DATA[case.name].removeprefix("hf://datasets/").split("/", 2)
    written = Path(case.write(folder))
    files = {path.relative_to(written).as_posix(): path.read_bytes() for path in written.rglob("*.parquet")}
    if below:
        (data,) = files.values()
        files = {below[0].replace("*", "00000-of-00001"): data, below[0].replace("*.parquet", "-notes.txt"): b"no rows"}
    others = {f"{number}.md": b"beside it" for number in range(5)}
    return hub.push(f"{owner}/{name}", {**others, **files})


def questions_of(case: Case, folder: Path) -> list[Any]:
    """As read from this machine's disk."""
    benchmark = next(one for one in BENCHMARKS if one.name == case.name)
    read = benchmark.read(str(folder))
    return [[q.id, q.prompt, [hashlib.sha256(image).hexdigest() for image in q.images]] for q in read]


def sweep_file(folder: Path, benchmarks: dict[str, Any]) -> str:
    given = {"output": str(folder / "out"), "models": {"tiny": str(checkpoint())}, "benchmarks": benchmarks}
    (folder / "sweep.yaml").write_text(yaml.safe_dump(given))
    return str(folder / "sweep.yaml")


def test_every_published_benchmark_is_read_from_the_hub_as_from_a_disk(hub: Hub, tmp_path: Path) -> None:
    for case in PUBLISHED:
        (tmp_path / case.name).mkdir()
        publish(hub, case, tmp_path / case.name)
    found = dict(run(hub, READ_ALL))
    assert found == {case.name: questions_of(case, tmp_path / case.name) for case in PUBLISHED}
    assert any(line.startswith("GET /datasets/lmms-lab/POPE/resolve/main/data/test-00000") for line in hub.asked)


@pytest.mark.soak
def test_a_sweep_keeps_to_the_commit_that_its_questions_were_written_from(hub: Hub, tmp_path: Path) -> None:
    cases = {case.name: case for case in CASES}
    (tmp_path / "data").mkdir()
    commit = publish(hub, cases["pope"], tmp_path / "data")
    dry_run = ["sweep", "--config", sweep_file(tmp_path, {"pope": None}), "--dry-run"]
    ((status, said),) = main_each(hub, [dry_run])
    assert (status, "1 cells, 0 complete" in said) == (0, True), said
    made = json.loads((tmp_path / "out" / "inputs" / "pope" / "own" / "made.json").read_text())
    assert made["read"] == f"hf://datasets/lmms-lab/POPE@{commit}/data/test-*.parquet"
    assert made["origin"]["data"] == DATA["pope"]
    hub.push("lmms-lab/POPE", {"data/test-00000-of-00001.parquet": b"no Parquet any more"})
    hub.asked.clear()
    code = """
import json, sys
from jobs.benchmarks import BENCHMARKS
from jobs.sweep import read_settings
from pathlib import Path
from pipeline.sweep.cells import cells_of
from pipeline.sweep.inputs import as_written, write_input
(cell,) = cells_of(read_settings(Path(sys.argv[1]), {}), BENCHMARKS)
write_input(cell.asking)
print(json.dumps([question.id for question in as_written(cell.asking).questions()]))
"""
    (ids,) = run(hub, code, str(tmp_path / "sweep.yaml"))
    assert ids == [id for id, _, _ in questions_of(cases["pope"], tmp_path / "data")]
    assert all(commit in line for line in hub.asked if "/resolve/" in line)


REFUSED = {
    "hf://datasets/no/such/data/*.parquet": "(repository not found)",
    "hf://datasets/no/such": "(repository not found)",
    "hf://datasets/a/open@v9/data/*.parquet": "(revision not found)",
    "hf://datasets/a/open/dtaa/*.parquet": "/dtaa/*.parquet",
    "hf://datasets/a/gated/data/*.parquet": "Access to dataset a/gated is restricted",
}


def test_what_the_hub_does_not_give_is_said_in_a_line_before_anything_starts(hub: Hub, tmp_path: Path) -> None:
    table = write_parquet(tmp_path / "in.parquet", [good_row(0)]).read_bytes()
    hub.push("a/open", {"data/x.parquet": table})
    hub.push("a/gated", {"data/x.parquet": table}, gated=True)
    commands = []
    for number, data in enumerate(REFUSED):
        (folder := tmp_path / str(number)).mkdir()
        commands.append(["sweep", "--config", sweep_file(folder, {"pope": {"data": data}}), "--dry-run"])
        commands.append(["caption", "--input", data, "--output", str(tmp_path / "o"), "--model", str(checkpoint())])
    messages = [message for message in REFUSED.values() for _ in ("sweep", "caption")]
    for (status, said), message in zip(main_each(hub, commands), messages, strict=True):
        assert status == 2, said
        assert said.startswith("error: ")
        assert said.count("\n") == 1, said
        assert message in said
    assert not (tmp_path / "o").exists()


def files_of(folder: Path, *without: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and path.name not in without}


def test_models_and_adapters_of_the_hub_are_proven_by_their_headers(hub: Hub, tmp_path: Path) -> None:
    base = files_of(checkpoint())
    larger = base["config.json"].replace(b'"vocab_size": 262', b'"vocab_size": 300')
    hub.push("a/base", base)
    hub.push("a/larger", {**base, "config.json": larger})
    hub.push("a/pickle", {**files_of(checkpoint(), "model.safetensors"), "pytorch_model.bin": b"x"})
    adapter = write_adapter(tmp_path / "lora", attention_pairs(), base_model_name_or_path="a/base")
    commit = hub.push("a/lora", files_of(adapter))
    hub.push("a/both", {**base, **files_of(adapter)})
    source = write_parquet(tmp_path / "in.parquet", [good_row(0)])
    models = ["a/base", "a/larger", "a/pickle", "a/lora", "a/both"]
    flags = ["--input", str(source), "--output", str(tmp_path / "out"), "--dry-run"]
    whole, refused, pickled, adapted, both = main_each(hub, [["caption", "--model", one, *flags] for one in models])
    assert (whole[0], adapted[0]) == (0, 0), (whole, adapted)
    assert f"adapter  a/lora@{commit}" in adapted[1]
    assert "4 tensors of a/base changed" in adapted[1]
    for (status, said), words in ((refused, "must be (300, 64)"), (pickled, "pytorch_model.bin"), (both, "--adapter")):
        assert status == 2, said
        assert words in said
        assert said.count("\n") == 1, said


PLAN = """
import json, sys
from pipeline.plan import plan_job
from schemas.job import JobSettings
plan = plan_job("caption", JobSettings(input=(sys.argv[1],), output=sys.argv[2], model="a/base"), "What?")
print(json.dumps([plan.settings.revision, plan.identity()["revision"]]))
"""


def test_a_hub_model_is_loaded_at_the_commit_that_was_proven(hub: Hub, tmp_path: Path) -> None:
    commit = hub.push("a/base", files_of(checkpoint()))
    source = write_parquet(tmp_path / "in.parquet", [good_row(0)])
    assert run(hub, PLAN, str(source), str(tmp_path / "out")) == [[commit, commit]]


@pytest.mark.soak
def test_a_split_of_a_dataset_is_read_at_its_commit(hub: Hub, tmp_path: Path) -> None:
    train, test = (
        write_parquet(tmp_path / "in.parquet", [good_row(n) for n in numbers]).read_bytes()
        for numbers in (range(3), range(3, 6))
    )
    commit = hub.push("a/b", {"data/train-0.parquet": train, "data/test-0.parquet": test, "README.md": b"x"})
    flags = ["--output", str(tmp_path / "o"), "--model", str(checkpoint()), "--dry-run"]
    names = ["a/b:test", f"a/b@{commit}:train", "a/b", "a/b:none"]
    said = main_each(hub, [["caption", "--input", f"hf://datasets/{name}", *flags] for name in names])
    assert [status for status, _ in said] == [0, 0, 0, 2], said
    assert ["3 rows of 1 parquet file" in text for _, text in said] == [True, True, False, False], said
    assert "6 rows of 2 parquet files" in said[2][1], said
    assert "must be a split of the dataset, it has train, test" in said[3][1]


@pytest.mark.soak
def test_a_gated_repository_opens_with_a_token(hub: Hub, tmp_path: Path) -> None:
    hub.push(
        "a/gated", {"data/x.parquet": write_parquet(tmp_path / "i.parquet", [good_row(0)]).read_bytes()}, gated=True
    )
    flags = ["--output", str(tmp_path / "o"), "--model", str(checkpoint()), "--dry-run"]
    command = ["caption", "--input", "hf://datasets/a/gated/data/*.parquet", *flags]
    ((status, said),) = main_each(hub, [command], token=TOKEN)
    assert (status, "1 row of 1 parquet file" in said) == (0, True), said


@pytest.mark.soak
def test_a_hub_that_is_away_is_said_in_a_line(hub: Hub, tmp_path: Path) -> None:
    hub.endpoint = "http://127.0.0.1:9"
    caption = ["caption", "--input", "hf://datasets/a/b/*.parquet", "--output", "o", "--model", str(checkpoint())]
    sweep = ["sweep", "--config", sweep_file(tmp_path, {"pope": None}), "--dry-run"]
    for status, said in main_each(hub, [caption, sweep]):
        assert status == 2, said
        assert "Connection refused" in said
        assert "Traceback" not in said


@pytest.mark.ray
@pytest.mark.soak
@pytest.mark.timeout(900)
def test_a_job_reads_the_hub_and_is_held_to_the_commit_that_it_began_with(hub: Hub, tmp_path: Path) -> None:
    """On a Ray of its own, whose workers find the hub in the environment."""
    tables = [write_parquet(tmp_path / f"{n}.parquet", [good_row(2 * n), good_row(2 * n + 1)]) for n in range(2)]
    hub.push("a/b", {f"data/{n}.parquet": path.read_bytes() for n, path in enumerate(tables)})
    flags = ["--model", str(checkpoint()), "--max-new-tokens", "2", "--gpus", "0", "--prompt", "What?"]
    command = ["caption", "--input", "hf://datasets/a/b/data/*.parquet", "--output", str(tmp_path / "out"), *flags]
    ((status, said),) = main_each(hub, [command])
    assert (status, "4 of 4 answers, 0 failed" in said) == (0, True), said
    hub.push("a/b", {"README.md": b"a word more"})
    ((status, said),) = main_each(hub, [command])
    assert (status, "already complete: 4 answers" in said) == (0, True), said
    later = hub.push("a/b", {"data/1.parquet": tables[0].read_bytes()})
    ((status, said),) = main_each(hub, [command])
    assert (status, "already complete: 4 answers" in said) == (0, True), said
    command[2] = f"hf://datasets/a/b@{later}/data/*.parquet"
    ((status, said),) = main_each(hub, [command])
    assert status == 2
    assert f"input file changed: hf://datasets/a/b@{later}/data/1.parquet" in said, said
    assert "0.parquet" not in said, said
