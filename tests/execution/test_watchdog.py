"""A process that holds its own interpreter is ended by another one, which leaves a note of what it was at."""

import subprocess
import sys
from pathlib import Path

HOLDS = """
import ctypes, sys, time
from pipeline.run_folder.markers import Note
from pipeline.execution.watchdog import Watchdog
watchdog = Watchdog()
watchdog.expect("done", time.monotonic() + 0.1, Note(url=sys.argv[1] + "/wrong.json", text="no"))
watchdog.done("done")
watchdog.expect("row", time.monotonic() + 99, Note(url=sys.argv[1] + "/wrong.json", text="no"))
watchdog.expect("row", time.monotonic() + float(sys.argv[2]), Note(url=sys.argv[1] + "/left.json", text="row 3"))
print("worked", flush=True)
ctypes.PyDLL(None).sleep(int(sys.argv[3]))
"""


STOPPED = HOLDS.replace("ctypes.PyDLL(None).sleep(int(sys.argv[3]))", "import os; os.kill(os.getpid(), 19)")


def run(folder: Path, seconds: float, sleep: int) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", HOLDS, str(folder), str(seconds), str(sleep)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])


def test_a_row_that_takes_too_long_ends_its_process_and_leaves_its_note(tmp_path: Path) -> None:
    ended = run(tmp_path, 0.2, 1000)
    assert (ended.returncode, ended.stdout, ended.stderr) == (-9, "worked\n", "")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("left.json", "row 3")]


def test_a_process_that_is_stopped_is_ended_too_and_its_row_is_not_accused(tmp_path: Path) -> None:
    command = [sys.executable, "-c", STOPPED, str(tmp_path), "2"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    assert (ended.returncode, ended.stdout, ended.stderr) == (-9, "worked\n", "")
    assert not list(tmp_path.iterdir())


def test_a_row_that_ends_in_time_leaves_nothing(tmp_path: Path) -> None:
    ended = run(tmp_path, 60, 1)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert not list(tmp_path.iterdir())
