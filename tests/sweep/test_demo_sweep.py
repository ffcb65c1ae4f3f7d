"""The demo model at two precisions, on three benchmarks, with two prompts: killed twice, and the table is the same."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import ray
import yaml

from benchmarks.real_pixels import build

ROOT = Path(__file__).parents[2]
PATIENCE_S = 240.0
CELLS = 12

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900), pytest.mark.usefixtures("cluster")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """A sweep as people run it, in a process of its own that joins this session's Ray."""

    folder: Path
    data: Path

    def write(self) -> None:
        benchmarks = {"shapes": "vqav2", "present": "pope", "lines": "ocrbench"}
        settings = {
            "output": str(self.folder),
            "models": {"demo": "demo"},
            "benchmarks": {
                name: {"benchmark": layout, "data": str(self.data / name)} for name, layout in benchmarks.items()
            },
            "prompts": {"plain": "{question}", "polite": "Please answer: {question}"},
            "settings": {"float32": {"dtype": "float32"}, "bfloat16": {"dtype": "bfloat16"}},
            "job": {"gpus": 0, "preprocess_workers": 1, "max_new_tokens": 24},
            "baseline": {"prompt": "plain", "settings": "float32"},
            "limit": 4,
        }
        self.folder.mkdir()
        (self.folder / "sweep.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))

    @contextmanager
    def running(self) -> Iterator[subprocess.Popen[str]]:
        """The sweep at work; killed at the end of the block where it still is."""
        command = [sys.executable, "-m", "jobs", "sweep", "--config", str(self.folder / "sweep.yaml")]
        environment = {**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address}
        with (self.folder / "log").open("a") as log:
            run = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=log, text=True)
            try:
                yield run
            finally:
                if run.poll() is None:
                    run.kill()
                run.communicate()

    def finish(self) -> dict[str, object]:
        """Run undisturbed to the end, which must be a good one; the last line of stdout."""
        with self.running() as run:
            said, _ = run.communicate(timeout=PATIENCE_S)
            assert run.returncode == 0, (self.folder / "log").read_text()
        summary: dict[str, object] = json.loads(said.splitlines()[-1])
        return summary

    def kill_when(self, moment: Callable[[], bool]) -> None:
        """SIGKILL the sweep at that moment, to which it must come."""
        with self.running() as run:
            deadline = time.monotonic() + PATIENCE_S
            while not moment():
                assert run.poll() is None, (self.folder / "log").read_text()
                assert time.monotonic() < deadline, (self.folder / "log").read_text()
                time.sleep(0.02)
            run.kill()

    def complete(self) -> int:
        return len(list(self.folder.glob("cells/*/*/*/*/.run/manifest.json")))

    def table(self) -> bytes:
        """All of the table but what time changes, as bytes."""
        lines = pq.read_table(self.folder / "results.parquet").drop_columns("images_per_s").to_pylist()
        return json.dumps(lines).encode()

    def page(self, name: str) -> str:
        """A page of the table without its last column, images/s."""
        text = (self.folder / name).read_text()
        return "\n".join(line.rsplit("|", 2)[0] if line.endswith("|") else line for line in text.splitlines())


@pytest.mark.soak
def test_a_sweep_killed_twice_gives_the_table_of_one_that_was_not(tmp_path: Path) -> None:
    build(tmp_path / "data")
    calm, killed = (Sweep(folder=tmp_path / name, data=tmp_path / "data") for name in ("calm", "killed"))
    calm.write()
    killed.write()
    killed.kill_when(lambda: killed.complete() >= 2)
    killed.kill_when(lambda: killed.complete() >= CELLS // 2 + 2)
    assert killed.complete() < CELLS
    assert not (killed.folder / "results.parquet").exists()
    assert killed.finish() == {**calm.finish(), "output": str(killed.folder)}
    assert killed.table() == calm.table()
    assert killed.page("results.md") == calm.page("results.md")
    headlines = [row for row in json.loads(calm.table()) if row["headline"]]
    assert [row["status"] for row in headlines] == ["complete"] * CELLS
    plain = {
        row["benchmark"]: row["score"] for row in headlines if (row["prompt"], row["settings"]) == ("plain", "float32")
    }
    assert plain["present"] >= 0.5
    assert plain["lines"] >= 500
    assert sum(row["baseline"] is not None for row in headlines) == CELLS - 3
