import os
import subprocess
import sys
from pathlib import Path

import pytest

from schemas.named_files import read_named

_READ = "import sys; from schemas.named_files import read_named; print(read_named(sys.argv[1]))"


def test_a_pipe_that_nobody_writes_to_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="a pipe that nobody writes to, with nothing in it"):
        read_named(tmp_path / "pipe")


def test_a_pipe_whose_writer_waits_for_a_reader_is_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with subprocess.Popen(["sh", "-c", f"echo one > '{tmp_path}/pipe'"]):  # which opens once somebody reads
        assert read_named(tmp_path / "pipe") == b"one\n"


def test_a_pipe_is_read_to_the_end_of_what_its_writer_writes_late(tmp_path: Path) -> None:
    read, write = os.pipe()
    reading = subprocess.Popen([sys.executable, "-c", _READ, f"/dev/fd/{read}"], pass_fds=[read], stdout=-1)
    os.close(read)
    for part in (b"", b"a" * 100_000, b"b"):  # more than a pipe holds: only what reads it lets us go on
        os.write(write, part)
    os.close(write)
    said, _ = reading.communicate()
    assert said.decode().strip() == repr(b"a" * 100_000 + b"b")


def test_bash_gives_what_a_command_says_as_a_pipe() -> None:
    script = f"{sys.executable} -c '{_READ}' <(sleep 0.1; echo one; sleep 0.1; echo two)"
    assert subprocess.check_output(["bash", "-c", script], text=True).strip() == repr(b"one\ntwo\n")


def test_a_file_may_be_empty_and_what_has_no_end_is_too_long(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    assert read_named(tmp_path / "empty") == read_named("/dev/null") == b""
    (tmp_path / "largest").write_bytes(bytes(2**20))
    assert len(read_named(tmp_path / "largest")) == 2**20
    with pytest.raises(OSError, match="at most 1,048,576 bytes"):
        read_named("/dev/zero")
    with pytest.raises(IsADirectoryError):
        read_named(tmp_path)
