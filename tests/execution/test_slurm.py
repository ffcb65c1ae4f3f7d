"""deploy/slurm.sh on a real Slurm of two nodes of this machine."""

import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from jobs.__main__ import main
from tests.inputs import good_row, write_parquet
from tests.slurm import Slurm, is_here, running_slurm
from tests.tiny import checkpoint

ROOT = Path(__file__).parents[2]
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")

pytestmark = [
    pytest.mark.ray,
    pytest.mark.soak,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(not is_here(), reason="needs root, slurm-wlm, munge and iproute2"),
]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    """Two nodes of two CPUs and a GPU each, by number."""
    with running_slurm(tmp_path_factory.mktemp("slurm"), cpus=2) as slurm:
        yield slurm


def sbatch(slurm: Slurm, log: Path, *job: str, project: Path = ROOT) -> str:
    """Submit a job as deploy/slurm.sh says; return its number."""
    words = ["sbatch", "--parsable", "--nodes=2", "--gpus-per-node=1", f"--output={log}", "deploy/slurm.sh"]
    return slurm.command(*words, *job, cwd=project).strip()


def wait_for(slurm: Slurm, job: str, log: Path) -> tuple[str, str]:
    """Return how a job has ended, and the exit status of its script."""
    for _ in range(600):
        state = slurm.state(job)
        if state["JobState"] in ENDED:
            return state["JobState"], state["ExitCode"].partition(":")[0]
        time.sleep(1)
    raise AssertionError(log.read_text())


def test_a_job_runs_on_both_nodes_and_a_requeued_one_goes_on(slurm: Slurm, tmp_path: Path) -> None:
    source = write_parquet(tmp_path / "in.parquet", [good_row(i) for i in range(40)])
    out, log = tmp_path / "out", tmp_path / "log"
    job = ["caption", "--input", str(source), "--model", str(checkpoint()), "--unit-rows", "1", "--gpus", "0"]
    job += ["--max-new-tokens", "200", "--min-new-tokens", "200", "--output", str(out)]
    number = sbatch(slurm, log, *job)
    while not list((out / "units").glob("*.parquet")):
        assert slurm.state(number)["JobState"] not in ENDED, log.read_text()
        time.sleep(1)
    slurm.command("scontrol", "requeue", number)
    while slurm.state(number)["JobState"] != "PENDING":
        time.sleep(1)
    slurm.command("scontrol", "update", f"JobId={number}", "StartTime=now")  # not after its two minutes
    assert wait_for(slurm, number, log) == ("COMPLETED", "0"), log.read_text()
    said = log.read_text()
    assert said.count("On head node") == said.count("On worker node") == 2
    assert "40 answers to give" not in said.rpartition("On head node")[2]  # but what is left of them
    assert pq.read_table(out / "answers").num_rows == 40
    assert main(["verify", str(out)]) == 0


def test_a_job_that_is_refused_fails_by_its_own_status(slurm: Slurm, tmp_path: Path) -> None:
    log = tmp_path / "log"
    job = ["caption", "--input", str(tmp_path / "gone.parquet"), "--output", str(tmp_path / "out"), "--gpus", "0"]
    assert wait_for(slurm, sbatch(slurm, log, *job), log) == ("FAILED", "2"), log.read_text()


def test_a_node_whose_ray_does_not_start_ends_the_job_and_says_why(slurm: Slurm, tmp_path: Path) -> None:
    project, log = tmp_path / "project", tmp_path / "log"
    bin = project / ".venv" / "bin"
    bin.mkdir(parents=True)
    for one in ("jobs", "pipeline", "schemas", "deploy"):
        (project / one).symlink_to(ROOT / one)
    (bin / "ray").write_text(
        '#!/bin/bash\n[[ $1 != start || $(hostname) != n2 ]] || set -- "$@" --no-such-option\n'
        f'exec {sys.executable} -m ray.scripts.scripts "$@"\n'
    )
    (bin / "ray").chmod(0o755)
    job = ["caption", "--input", str(tmp_path / "in.parquet"), "--output", str(tmp_path / "out"), "--gpus", "0"]
    assert wait_for(slurm, sbatch(slurm, log, *job, project=project), log) == ("FAILED", "1"), log.read_text()
    said = log.read_text()
    assert re.search(r"^error: node n2 did not start its Ray: Error: No such option\W+--no-such-option\W+$", said, re.M)
    assert "Timed out" not in said  # nobody waits for it
