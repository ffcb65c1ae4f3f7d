"""The disk of a run folder is full, without inodes or read-only, whatever file of its end that meets; without Ray."""

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from jobs.answer import report, run_to_status
from pipeline.job import run_job
from pipeline.plan import Plan
from pipeline.verify import verify_run
from tests.fakes import load_echo_engine
from tests.test_verify import run_without_ray

pytestmark = pytest.mark.soak
ROOM = "size=4m,nr_inodes=1000"


@contextmanager
def small_disk(path: Path, options: str = ROOM) -> Iterator[None]:
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(path)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a small disk cannot be mounted here")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(path)], check=False)


def remount(path: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(path)], check=True)


def used(path: Path, column: str) -> int:
    told = subprocess.run(["df", f"--output={column}", "-B4096", str(path)], capture_output=True, text=True, check=True)
    return int(told.stdout.split()[-1])


def status_of(plan: Plan) -> int:
    """What the command comes to: its units are done, so that what is left is written by this process."""
    return run_to_status(lambda: report(run_job(plan, load_echo_engine), 1.0))


@pytest.mark.parametrize("what", ["blocks", "inodes"])
def test_wherever_the_disk_is_full_the_file_is_said_and_room_lets_the_run_end(
    tmp_path: Path, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    with small_disk(out):
        plan = run_without_ray(tmp_path, finish=False, max_error_rate=1.0)
        shutil.copytree(out, tmp_path / "begun")
        full = 0
        for more in range(40):
            limit = f"size={4 * (used(out, 'used') + more)}k" if what == "blocks" else ""
            remount(out, limit or f"nr_inodes={used(out, 'iused') + more}")
            status = status_of(plan)
            said = capsys.readouterr().err
            remount(out, ROOM)
            if status == 0:
                break
            full += 1
            assert status == 1
            assert f"error: [Errno 28] No space left on device: '{out}" in said, said
            assert "run the same command again to go on" in said
            assert status_of(plan) == 0
            assert verify_run(str(out)) == []
            assert pq.read_table(out / "answers").num_rows == 20
            for path in out.iterdir():
                shutil.rmtree(path)
            shutil.copytree(tmp_path / "begun", out, dirs_exist_ok=True)
        assert full >= 3
        assert verify_run(str(out)) == []


def test_a_disk_that_has_become_read_only_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    with small_disk(out):
        plan = run_without_ray(tmp_path, finish=False, max_error_rate=1.0)
        remount(out, "ro")
        assert status_of(plan) == 1
        assert f"error: [Errno 30] Read-only file system: '{out}/.run/driver.lock'" in capsys.readouterr().err
        remount(out, "rw")
        assert status_of(plan) == 0
        assert verify_run(str(out)) == []
