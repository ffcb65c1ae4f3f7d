"""A process of ours goes on where nobody reads what it says, and ends with a status that tells so."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import os, sys
from jobs.ending import end_process
from jobs.streams import keep_streams

keep_streams()
opened = open(os.devnull)
for number in range(3):
    sys.stderr.write("working\\n")
    sys.stdout.write("found\\n" * 100_000)
with open(sys.argv[1], "w") as done:
    done.write(f"{opened.fileno() > 2}")
end_process(int(sys.argv[2]))
"""


@pytest.mark.parametrize(
    ("flags", "streams", "status", "ends", "said"),
    [
        pytest.param([], "", 0, 0, "working\n" * 3, id="read"),
        pytest.param([], "| true", 0, 141, "working\n" * 3, id="a reader that ends"),
        pytest.param([], "| true", 2, 2, "working\n" * 3, id="a reader that ends, a status of its own"),
        pytest.param([], ">/dev/full", 0, 1, "working\n" * 3 + "error: stdout cannot be written: No space", id="full"),
        pytest.param(["-u"], "| true", 0, 141, "working\n" * 3, id="a reader that ends, unbuffered"),
        pytest.param(["-u"], ">/dev/full", 0, 1, "working\n" * 3 + "error: stdout", id="full, unbuffered"),
        pytest.param([], "2>/dev/full", 0, 0, "", id="a full log"),
        pytest.param([], ">&-", 0, 0, "working\n" * 3, id="no stdout"),
        pytest.param([], "<&- >&- 2>&-", 0, 0, "", id="none at all"),
    ],
)
def test_work_goes_on_where_nobody_reads(
    flags: list[str], streams: str, status: int, ends: int, said: str, tmp_path: Path
) -> None:
    shell = f'"$@" {streams}; exit "${{PIPESTATUS[0]}}"'
    python = [sys.executable, *flags, "-c", SCRIPT, str(tmp_path / "done"), str(status)]
    done = subprocess.run(["bash", "-c", shell, "bash", *python], capture_output=True, text=True, check=False)
    assert done.returncode == ends
    assert done.stderr.startswith(said)
    assert "Traceback" not in done.stderr
    assert (tmp_path / "done").read_text() == "True"  # no file has had the number of a stream
