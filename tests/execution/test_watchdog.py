"""A process that holds its own interpreter is ended by another one, which leaves a note of what it was at."""

import itertools
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from pipeline.execution.watchdog import _put_down, _Shared

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


HOLDS_BESIDE = """
import ctypes, sys, time
from pipeline.run_folder.markers import Note
from pipeline.execution.watchdog import Watchdog
watchdog = Watchdog()
for name, seconds in (("before", 0.5), ("holds", 1.0), ("after", 99)):
    watchdog.expect(name, time.monotonic() + seconds, Note(url=sys.argv[1] + f"/{name}.json", text=name))
(ctypes.PyDLL if sys.argv[2] == "held" else ctypes.CDLL)(None).sleep(1000)
"""


HOLDS_WHILE_TOLD = """
import ctypes, sys, time
from pipeline.run_folder.markers import Note
from pipeline.execution.watchdog import Watchdog
lines = 0
def hold(frame, event, _):
    global lines
    lines += event == "line"
    if lines == int(sys.argv[2]):
        ctypes.PyDLL(None).sleep(1000)
    return hold
watchdog = Watchdog()
watchdog.expect("row", time.monotonic() + 0.3, Note(url=sys.argv[1] + "/row-5.json", text=""))
sys.settrace(lambda frame, *_: hold if frame.f_code.co_name == "write" else None)
watchdog.expect("row", time.monotonic() + 99, Note(url=sys.argv[1] + "/row-6.json", text=""))
"""


STOPPED = HOLDS.replace("ctypes.PyDLL(None).sleep(int(sys.argv[3]))", "import os; os.kill(os.getpid(), 19)")


def run(folder: Path, seconds: float, sleep: int) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", HOLDS, str(folder), str(seconds), str(sleep)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])


def test_a_row_that_takes_too_long_ends_its_process_and_leaves_its_note(tmp_path: Path) -> None:
    ended = run(tmp_path, 0.2, 1000)
    assert (ended.returncode, ended.stdout, ended.stderr) == (-9, "worked\n", "")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("left.json", "row 3")]


def run_script(script: str, *arguments: str) -> int:
    command = [sys.executable, "-c", script, *arguments]
    return subprocess.run(command, check=False, cwd=Path(__file__).parents[2], timeout=30).returncode


def test_of_several_rows_beside_one_that_holds_the_interpreter_none_is_accused(tmp_path: Path) -> None:
    assert run_script(HOLDS_BESIDE, str(tmp_path), "held") == -9
    assert not list(tmp_path.iterdir())


def test_of_several_rows_in_a_process_that_takes_turns_the_late_one_is_accused(tmp_path: Path) -> None:
    assert run_script(HOLDS_BESIDE, str(tmp_path), "free") == -9
    assert [path.name for path in tmp_path.iterdir()] == ["before.json"]


def test_a_process_that_is_held_in_the_middle_of_telling_is_ended_all_the_same(tmp_path: Path) -> None:
    for line in itertools.count(1):
        (folder := tmp_path / str(line)).mkdir()
        if run_script(HOLDS_WHILE_TOLD, str(folder), str(line)) == 0:  # it has no such line
            break
        assert [path.name for path in folder.iterdir()] == ["row-5.json"]
    assert line > 4


def test_a_process_that_is_stopped_is_ended_too_and_its_row_is_not_accused(tmp_path: Path) -> None:
    command = [sys.executable, "-c", STOPPED, str(tmp_path), "2"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    assert (ended.returncode, ended.stdout, ended.stderr) == (-9, "worked\n", "")
    assert not list(tmp_path.iterdir())


def test_a_row_that_ends_in_time_leaves_nothing(tmp_path: Path) -> None:
    ended = run(tmp_path, 60, 1)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert not list(tmp_path.iterdir())


class Overtaken(_Shared):
    """Is told, at the moment in which it is looked whether the interpreter is held, what is at work by then."""

    def __init__(self, descriptor: int, by_then: str) -> None:
        super().__init__(descriptor)
        self._by_then = by_then

    def is_held(self) -> bool:
        self.write(self._by_then.encode())
        return False


@pytest.mark.parametrize(("by_then", "ends"), [('[[99, "{}/late", ""]]', False), ('[[1, "{}/late", ""]]', True)])
def test_a_process_whose_late_row_ends_before_it_can_be_put_down_goes_on(
    tmp_path: Path, by_then: str, ends: bool
) -> None:
    with tempfile.TemporaryFile() as memory, subprocess.Popen(["sleep", "600"]) as worker:
        memory.truncate(2**22)
        shared = Overtaken(memory.fileno(), by_then.format(tmp_path))
        shared.write(b'[[1, "late", ""], [99, "beside", ""]]')
        try:
            assert _put_down(worker.pid, shared, now=2) == ends
            worker.terminate()  # which one that is stopped does not hear
            assert worker.wait(30) == (-9 if ends else -15)
            assert [path.name for path in tmp_path.iterdir()] == ["late"] * ends
        finally:
            worker.kill()
