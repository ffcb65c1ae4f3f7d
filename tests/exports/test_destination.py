"""Files appear whole, an export that was killed is gone on with, and nothing is written elsewhere."""

import os
import random
import resource
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import pytest

from jobs.__main__ import main
from pipeline.exports import destination as destination_module
from pipeline.exports.destination import MARK, begin_folder, check_inside, put_file, safe_name, write_file
from pipeline.exports.export import FORMATS, ExportOptions, Format, export
from pipeline.storage import filesystem as fs
from schemas.errors import Refused
from tests.exports.runs import make_images, make_run, tree
from tests.lines import Lines, each_line

pytest_plugins = ["tests.exports.complete", "tests.object_store"]


class Killed(BaseException):
    """Ends an export as SIGKILL does: nothing is cleaned up after it."""


def parts(count: int, killed_in: int | None = None, written: list[int] | None = None) -> Iterator:
    def part(number: int) -> Iterator[bytes]:
        if written is not None:
            written.append(number)
        yield b"%d begins\n" % number
        if number == killed_in:
            raise Killed
        yield b"%d ends\n" % number

    yield from (lambda number=number: part(number) for number in range(count))


@pytest.mark.parametrize("killed_in", range(3))
def test_a_file_goes_on_behind_its_last_whole_part(tmp_path: Path, killed_in: int) -> None:
    whole, again = tmp_path / "whole", tmp_path / "again" / "file"
    write_file(str(whole), "key", parts(3))
    with pytest.raises(Killed):
        write_file(str(again), "key", parts(3, killed_in))
    assert not again.exists()
    written: list[int] = []
    write_file(str(again), "key", parts(3, written=written))
    assert written == list(range(killed_in, 3))
    assert tree(again.parent) == {"file": whole.read_bytes()}


@pytest.mark.parametrize("write", [lambda url: write_file(url, "key", parts(2)), lambda url: put_file(url, b"whole")])
def test_of_two_exports_at_once_one_writes_and_no_half_of_it_shows(
    tmp_path: Path, write: Callable[[str], None]
) -> None:
    write(str(tmp_path / "alone"))
    whole = (tmp_path / "alone").read_bytes()

    def run(number: int) -> Lines:
        path = tmp_path / str(number) / "file"
        seen = list[bytes]()

        def attempt() -> None:
            with suppress(Refused):
                write(str(path))

        def look() -> None:
            seen.extend(path.read_bytes() for _ in range(1) if path.exists())

        lines = Lines((destination_module,), number, attempt)
        lines.after = look
        lines.run(attempt)
        assert set(seen) <= {whole}
        assert tree(path.parent) == {"file": whole}
        return lines

    assert len(list(each_line(run))) > 20


@pytest.mark.parametrize("to", FORMATS)
def test_a_destination_below_a_file_is_refused(tmp_path: Path, to: Format) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Refused, match=f"DEST must be below a folder, {tmp_path}/file is none"):
        export(str(tmp_path), f"{tmp_path}/file/x/y", to, ExportOptions())


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
@pytest.mark.parametrize(("mode", "name"), [(0o500, "x.jsonl"), (0o600, "not/seen/x.jsonl")])
def test_a_folder_that_is_not_ours_to_write_is_refused(tmp_path: Path, mode: int, name: str) -> None:
    tmp_path.chmod(mode)
    with pytest.raises(Refused, match=f"DEST must be in a folder that can be written, {tmp_path} cannot be"):
        export(str(tmp_path), f"{tmp_path}/{name}", "jsonl", ExportOptions())


def test_what_another_export_has_left_is_written_anew(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        write_file(str(tmp_path / "file"), "another", parts(5, 4))
    write_file(str(tmp_path / "file"), "key", parts(1))
    assert tree(tmp_path) == {"file": b"0 begins\n0 ends\n"}


def test_a_half_that_is_shorter_than_its_journal_says_is_written_anew(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        write_file(str(tmp_path / "file"), "key", parts(3, 2))
    os.truncate(tmp_path / ".file.part", 3)
    write_file(str(tmp_path / "file"), "key", parts(1))
    assert (tmp_path / "file").read_bytes() == b"0 begins\n0 ends\n"


OF_FOLDERS = ("webdataset", "dataset", "markdown", "text")


@contextmanager
def full_disk(most: int) -> Iterator[None]:
    """No file may have more bytes: what writes one ends in the middle of it."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("to", FORMATS)
def test_an_export_that_ends_in_the_middle_is_the_same_in_the_end(single: str, tmp_path: Path, to) -> None:
    options = ExportOptions(suffix="!" * 200) if to == "sidecars" else ExportOptions()
    export(single, str(tmp_path / "whole" / "x"), to, options)
    whole = tree(tmp_path / "whole")
    with full_disk(max(map(len, whole.values())) - 1), pytest.raises(OSError, match="too large"):
        export(single, str(tmp_path / "again" / "x"), to, options)
    assert tree(tmp_path / "again").keys() & whole.keys() < whole.keys()
    export(single, str(tmp_path / "again" / "x"), to, options)
    assert tree(tmp_path / "again") == whole


def killed_in_a_write(most: int, step: Callable[[], object]) -> int:
    """Take a step in a process of its own, of which the kernel lets no file have more bytes; return its exit status.

    As after SIGKILL, nothing of it runs any more.
    """
    child = os.fork()
    if not child:
        try:
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
            step()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # what Python 3.12 says of any fork
@pytest.mark.parametrize("to", FORMATS)
def test_an_export_that_is_killed_in_the_middle_is_the_same_in_the_end(single: str, tmp_path: Path, to) -> None:
    options = ExportOptions(suffix="!" * 200) if to == "sidecars" else ExportOptions()
    export(single, str(tmp_path / "whole" / "x"), to, options)
    whole, again = tree(tmp_path / "whole"), str(tmp_path / "again" / "x")
    most = max(map(len, whole.values())) - 1
    assert killed_in_a_write(most, lambda: export(single, again, to, options)) == -signal.SIGXFSZ
    left = tree(tmp_path / "again")
    assert all(whole.get(name) == data for name, data in left.items() if not Path(name).name.startswith("."))
    assert left != whole
    export(single, again, to, options)
    assert tree(tmp_path / "again") == whole


@pytest.mark.parametrize("to", OF_FOLDERS)
def test_an_export_that_was_killed_before_its_mark_was_whole_goes_on(single: str, tmp_path: Path, to) -> None:
    export(single, str(tmp_path / "whole"), to, ExportOptions())
    (tmp_path / "again").mkdir()
    (tmp_path / "again" / f".{MARK}.part").write_bytes(b"{")
    export(single, str(tmp_path / "again"), to, ExportOptions())
    assert tree(tmp_path / "again") == tree(tmp_path / "whole")


@pytest.fixture(scope="module")
def larger(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A run folder of 200 answers."""
    folder = tmp_path_factory.mktemp("larger")
    return make_run(folder, make_images(folder / "in", [f"{number:03}.jpg" for number in range(200)]))


def killed_after(seconds: float, step: Callable[[], object]) -> bool:
    """Take a step in a process of its own and send it SIGKILL; return whether it was still at it."""
    child = os.fork()
    if not child:
        try:
            step()
        finally:
            os._exit(0)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


@pytest.mark.soak
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # what Python 3.12 says of any fork
@pytest.mark.parametrize("to", FORMATS)
def test_an_export_that_is_killed_at_random_moments_is_the_same_in_the_end(larger: str, tmp_path: Path, to) -> None:
    draw, began = random.Random(to), time.monotonic()
    export(larger, str(tmp_path / "whole" / "x"), to, ExportOptions())
    took, kills = time.monotonic() - began, 0
    whole = tree(tmp_path / "whole")
    for folder in (tmp_path / f"again-{number}" for number in range(5)):
        step = partial(export, larger, str(folder / "x"), to, ExportOptions())
        for _ in range(3):
            kills += killed_after(draw.uniform(0, took), step)
            left = {name: data for name, data in tree(folder).items() if not Path(name).name.startswith(".")}
            assert left.items() <= whole.items()
        if tree(folder) != whole:  # else it was through before it was killed
            step()
        assert tree(folder) == whole
    assert kills


@pytest.mark.parametrize("to", OF_FOLDERS)
def test_a_folder_of_another_export_is_refused(single: str, tmp_path: Path, to) -> None:
    begin_folder(str(tmp_path / "dest"), "another")
    with pytest.raises(Refused, match="holds another export that was not finished"):
        export(single, str(tmp_path / "dest"), to, ExportOptions())


@pytest.mark.parametrize("to", [to for to in FORMATS if to != "sidecars"])
def test_what_is_there_is_never_written_over(single: str, tmp_path: Path, to) -> None:
    dest = tmp_path / "dest"
    if to in OF_FOLDERS:
        dest.mkdir()
        (dest / "mine.txt").write_text("mine")
    else:
        dest.write_text("mine")
    with pytest.raises(Refused, match="DEST must not exist yet"):
        export(single, str(dest), to, ExportOptions())
    assert set(tree(tmp_path).values()) == {b"mine"}


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("a/b.c", "a/b.c"),
        ("../../etc/passwd", "%2E%2E/%2E%2E/etc/passwd"),
        ("/etc/passwd", "etc/passwd"),
        ("a//b/./c", "a/b/%2E/c"),
        ("...", "%2E%2E%2E"),
        ("a\\b\0\n", "a%5Cb%00%0A"),
        ("100%", "100%25"),
        ("", "%"),
        ("///", "%"),
        ("https://host/a?b=c", "https:/host/a?b=c"),
    ],
)
def test_names_of_rows_lead_nowhere_else(name: str, safe: str) -> None:
    assert safe_name(name) == safe


def test_long_names_are_cut_and_stay_apart() -> None:
    names = [safe_name("é" * 300 + end) for end in "ab"]
    assert all(len(name.encode()) <= 200 for name in names)
    assert len(set(names)) == 2


def test_a_link_in_the_destination_leads_nowhere_else(tmp_path: Path) -> None:
    (tmp_path / "dest").mkdir()
    (tmp_path / "dest" / "link").symlink_to(tmp_path)
    (tmp_path / "dest" / "inner").mkdir()
    (tmp_path / "dest" / "fine").symlink_to("inner")
    check_inside(str(tmp_path / "dest"), str(tmp_path / "dest" / "fine" / "x"))
    with pytest.raises(Refused, match="over a link outside of it"):
        check_inside(str(tmp_path / "dest"), str(tmp_path / "dest" / "link" / "x"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        pytest.param(["nowhere", "x", "--to", "jsonl"], "nowhere has none", id="no run"),
        pytest.param(["OUT", "", "--to", "jsonl"], "DEST must not be empty", id="no destination"),
        pytest.param(["OUT", "http://h/x", "--to", "jsonl"], "DEST must be a path", id="http"),
        pytest.param(["OUT", "OUT/x.jsonl", "--to", "jsonl"], "outside of the run folder", id="in the run"),
        pytest.param(["OUT", "x", "--to", "parquet"], "parquet", id="another form"),
        pytest.param(["OUT", "x", "--to", "csv", "--prefix", "y"], "--prefix is for --to sidecars", id="others' flag"),
        pytest.param(["OUT", "x", "--to", "sidecars", "--status", "error"], "has no texts", id="no texts"),
        pytest.param(["OUT", "x", "--to", "jsonl", "--prompt-id", "no"], "one of prompt, got 'no'", id="prompt"),
        pytest.param(["OUT", "x", "--to", "sidecars", "--openings", "no"], "--openings no", id="no list"),
        pytest.param(["OUT", "x", "--to", "dataset", "--push", "a/b/c"], "must be owner/name", id="repository"),
        pytest.param(["OUT", "x", "--to", "jsonl", "--stauts", "ok"], "did you mean --status", id="misspelt"),
    ],
)
def test_bad_usage_is_one_line(single: str, capsys: pytest.CaptureFixture[str], words: list[str], said: str) -> None:
    assert main(["export", *(word.replace("OUT", single) for word in words)]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert said in err


def test_a_run_that_is_not_whole_is_refused(tmp_path: Path) -> None:
    images = make_images(tmp_path / "in", ["a.jpg", "b.jpg"])
    out = make_run(tmp_path, images, finish=False)
    with pytest.raises(Refused, match="must be a complete run"):
        export(out, str(tmp_path / "x"), "jsonl", ExportOptions())
    make_run(tmp_path, images)
    part = Path(out, "answers", "part-00000.parquet")
    part.write_bytes(part.read_bytes()[:-9])
    with pytest.raises(Refused, match=r"must be whole, answers/part-00000.parquet is not the file"):
        export(out, str(tmp_path / "x"), "jsonl", ExportOptions())
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("to", FORMATS)
def test_an_export_in_a_store_is_that_on_a_disk(single: str, tmp_path: Path, bucket: str, to) -> None:
    export(single, str(tmp_path / "local" / "x"), to, ExportOptions())
    export(single, f"{bucket}/deep/x", to, ExportOptions())
    files = fs.list_folder(f"{bucket}/deep")
    there = {file.url.removeprefix(f"{bucket}/deep/"): fs.read_bytes(file.url) for file in files}
    assert there == tree(tmp_path / "local")
    if to != "sidecars":
        with pytest.raises(Refused, match="must not exist yet"):
            export(single, f"{bucket}/deep/x", to, ExportOptions())
