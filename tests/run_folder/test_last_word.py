"""The last word: a driver that ends in the middle is spoken for, on whatever its stderr is; one that says so is not."""

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from schemas.wording import GO_ON

ROOT = Path(__file__).parents[2]
HOLD = "import os, signal, sys; from pipeline.run_folder.lock import hold\nwith hold(sys.argv[1]) as lock: "
IN_THE_MIDDLE = [
    pytest.param("os.kill(os.getpid(), signal.SIGKILL)", id="SIGKILL"),
    pytest.param("os._exit(1)", id="an exit of native code"),
    pytest.param("os.killpg(0, signal.SIGTERM)", id="SIGTERM to all of its group"),
]
IN_ORDER = [
    pytest.param("pass", id="done"),
    pytest.param("sys.exit(1)", id="an exit of Python's"),
    pytest.param("lock.release(); os._exit(1)", id="one that has let go of its folder"),
    pytest.param("lock.release(); os.execv(sys.executable, [sys.executable, '-c', ''])", id="begun again"),
]


def driver(end: str, folder: Path) -> list[str]:
    return [sys.executable, "-c", HOLD + end, str(folder)]


@pytest.mark.parametrize("end", IN_THE_MIDDLE)
def test_what_ends_in_the_middle_is_said_with_how_to_go_on(end: str, tmp_path: Path) -> None:
    command = driver(end, tmp_path)
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True) as run:
        said = run.communicate()[1]  # to its end: nobody who could write there is left
    assert run.returncode != 0
    assert said.startswith(f"\nerror: the driver (process {run.pid}) has ended in the middle of its work")
    assert said.endswith(f"\n{GO_ON}\n")
    assert said.count("\n") == 3


@pytest.mark.parametrize("end", IN_ORDER)
def test_a_driver_that_can_speak_for_itself_is_not_spoken_for(end: str, tmp_path: Path) -> None:
    run = subprocess.run(driver(end, tmp_path), cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.stderr == ""


def test_a_terminal_is_told_as_well(tmp_path: Path) -> None:
    shell, terminal = pty.fork()
    if not shell:
        os.chdir(ROOT)
        command = driver("os.kill(os.getpid(), signal.SIGKILL)", tmp_path)
        os.execv("/bin/sh", ["sh", "-c", '"$@"; read -r word', "sh", *command])  # stays, as a terminal's shell does
    said = b""
    while not said.endswith(GO_ON.encode()):
        said += os.read(terminal, 1)
    os.write(terminal, b"\n")
    os.waitpid(shell, 0)
    os.close(terminal)
    assert b"has ended in the middle of its work" in said


def test_a_file_is_told_as_well_and_nothing_stands_in_the_way_where_stderr_is_closed(tmp_path: Path) -> None:
    command = driver("os.kill(os.getpid(), signal.SIGKILL)", tmp_path)
    with (tmp_path / "log").open("w") as log:
        subprocess.run(["/bin/sh", "-c", '"$@" | cat', "sh", *command], cwd=ROOT, stderr=log, check=False)
    assert GO_ON in (tmp_path / "log").read_text()
    closed = subprocess.run(["/bin/sh", "-c", 'exec "$@" 2>&-', "sh", *driver("pass", tmp_path)], cwd=ROOT, check=False)
    assert closed.returncode == 0
