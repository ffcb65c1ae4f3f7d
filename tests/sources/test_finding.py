"""What a user names, on a disk and in a store: taken, or counted and named among what is left out."""

import os
from pathlib import Path

import pytest

from pipeline.sources.columns import ColumnChoices
from pipeline.sources.duplicates import refuse_duplicate_ids
from pipeline.sources.finding import find_files
from pipeline.sources.listing import list_input
from pipeline.sources.reader import read_unit_ids
from pipeline.storage import filesystem as fs
from pipeline.storage.filesystem import FileInfo
from schemas.errors import Refused

pytest_plugins = ["tests.object_store"]


@pytest.fixture(params=["local", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path) if request.param == "local" else request.getfixturevalue("bucket")


def list_files(url: str, suffixes: tuple[str, ...]) -> list[FileInfo]:
    return list(find_files(url, suffixes).files)


def test_a_folder_is_listed_with_all_below_it_sorted_and_without_hidden_files(root: str) -> None:
    for name in ("b.jpg", "a/z.JPG", "a/.hidden.jpg", ".cache/c.jpg", "notes.txt", "a.d/y.jpg"):
        fs.write_atomic(fs.join(root, "in", name), name.encode())
    found = list_files(fs.join(root, "in"), (".jpg",))
    assert [file.url for file in found] == [fs.join(root, "in", n) for n in ("a.d/y.jpg", "a/z.JPG", "b.jpg")]
    assert [file.size for file in found] == [9, 7, 5]


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        pytest.param("*.jpg", ["a.jpg", "b.jpg"], id="files"),
        pytest.param("d*", ["d/c.jpg", "d/e/f.jpg"], id="folders with all below"),
        pytest.param("**", ["a.jpg", "b.jpg", "d/c.jpg", "d/e/f.jpg"], id="each file once"),
        pytest.param("[ax].jpg", ["a.jpg"], id="class"),
        pytest.param("a.jpg", ["a.jpg"], id="one file"),
        pytest.param("nothing*", [], id="nothing"),
        pytest.param("nothing", [], id="no such name"),
    ],
)
def test_a_glob_lists_files_and_folders(root: str, pattern: str, names: list[str]) -> None:
    for name in ("a.jpg", "b.jpg", "d/c.jpg", "d/e/f.jpg", "d/g.txt"):
        fs.write_atomic(fs.join(root, name), b"x")
    found = list_files(fs.join(root, pattern), (".jpg",))
    assert [file.url for file in found] == [fs.join(root, name) for name in names]


def test_a_name_with_brackets_is_taken_as_it_is(root: str) -> None:
    url = fs.join(root, "scan [1].jpg")
    fs.write_atomic(url, b"x")
    assert [file.url for file in list_files(url, (".jpg",))] == [url]


def test_a_file_has_one_version_however_it_is_listed_and_another_after_a_change(root: str) -> None:
    url = fs.join(root, "d", "a.jpg")

    def versions() -> set[str]:
        patterns = (url, fs.join(root, "d"), fs.join(root, "d", "*.jpg"))
        return {file.version for pattern in patterns for file in list_files(pattern, (".jpg",))}

    fs.write_atomic(url, b"1")
    before = versions()
    fs.write_atomic(url, b"2")
    assert len(before) == 1
    assert before.isdisjoint(versions())


def names_of(url: str, output: str | None = None) -> tuple[list[str], str]:
    """The files found, below their root, and what was left out."""
    found = find_files(url, (".jpg",), output)
    root = fs.spelled(found.root)
    return [fs.spelled(file.url)[len(root) + 1 :] for file in found.files], str(found.left_out)


@pytest.mark.parametrize("name", ["a[b]c", "in?", "in*", "in#1", "in%20", "in 1", "in+é"])
def test_a_folder_that_is_there_is_meant_whatever_its_name(root: str, name: str) -> None:
    for folder in (name, "abc", "in1", "inx"):
        fs.write_atomic(fs.join(root, folder, "1.jpg"), b"x")
    for pattern in (name, f"{name}/1.jpg", f"{name}/*.jpg"):
        found = find_files(fs.join(root, pattern), (".jpg",))
        assert [file.url for file in found.files] == [fs.join(root, name, "1.jpg")]
        assert found.root == fs.join(root, name)
    assert names_of(fs.join(root, name, "nothing.jpg")) == ([], "")


def test_what_is_left_out_is_counted_and_named(root: str) -> None:
    for name in (".h.jpg", "a.jpg", "1.txt", "d/2.txt", "d/3.txt", "d/4.txt"):
        fs.write_atomic(fs.join(root, name), b"x")
    files, left_out = names_of(root)
    assert files == ["a.jpg"]
    assert left_out.startswith("1 hidden (.h.jpg), 4 of other kinds (")
    assert left_out.endswith(", ...)")


@pytest.mark.parametrize("state", [".run/run.json .run/input.pq", "run.json input.parquet"], ids=["now", "earlier"])
def test_folders_of_runs_below_an_input_are_left_out_before_and_after_they_are_there(root: str, state: str) -> None:
    fs.write_atomic(fs.join(root, "in", "a.jpg"), b"x")
    inside = fs.join(root, "in")
    out = fs.join(inside, "deep", "out[1]")
    before = names_of(inside, out)
    for name in (*state.split(), "answers/a.jpg"):
        fs.write_atomic(fs.join(out, name), b"x")
        fs.write_atomic(fs.join(inside, "older", name), b"x")
    files, left_out = names_of(inside, out)
    assert files == before[0]
    assert left_out.startswith("2 folders of runs (o")
    assert names_of(fs.join(root, "*"), out)[0] == ["in/a.jpg"]
    assert names_of(fs.join(inside, "older", "answers"), out)[0] == ["a.jpg"]  # it is what the user named


@pytest.mark.parametrize("pattern", ["**.jpg", "d/a**"])
def test_two_stars_in_a_name_are_refused(root: str, pattern: str) -> None:
    with pytest.raises(Refused, match="must stand alone"):
        find_files(fs.join(root, pattern), (".jpg",))


def test_links_are_followed_once_and_no_loop_is_walked(tmp_path: Path) -> None:
    for name in ("in/a.jpg", "in/d/b.jpg", "beside/c.jpg", "far/e.jpg"):
        fs.write_atomic(str(tmp_path / name), b"x")
    for name, target in {
        "album": "../beside",
        "album2": "../beside",
        "loop": ".",
        "to-d": "d",
        "gone.jpg": "nothing",
        "round": "round",
        "again.jpg": "a.jpg",
        "d/far": "../../far",
    }.items():
        (tmp_path / "in" / name).symlink_to(target)
    files, left_out = names_of(str(tmp_path / "in"))
    assert files == ["a.jpg", "again.jpg", "album/c.jpg", "d/b.jpg", "d/far/e.jpg"]
    assert "3 links to folders that are listed already (album2, loop, to-d)" in left_out
    assert "2 links to nothing (" in left_out


def test_a_link_to_the_output_is_left_out_as_the_output_is(tmp_path: Path) -> None:
    for name in ("in/a.jpg", "out/b.jpg"):
        fs.write_atomic(str(tmp_path / name), b"x")
    (tmp_path / "in" / "results").symlink_to("../out")
    assert names_of(str(tmp_path / "in"), str(tmp_path / "out")) == (["a.jpg"], "1 folders of runs (results)")
    assert names_of(str(tmp_path / "in/*"), str(tmp_path / "in/results"))[0] == ["a.jpg"]


def test_a_name_that_is_not_utf_8_is_found_and_spelled(tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path) + b"/in\xff"
    os.mkdir(folder)
    with open(folder + b"/caf\xe9.jpg", "wb") as file:
        file.write(b"x")
    assert names_of(str(tmp_path)) == (["in\\xff/caf\\xe9.jpg"], "")
    assert names_of(f"file://{tmp_path}/in%FF") == (["caf\\xe9.jpg"], "")
    assert names_of(f"{tmp_path}/*/c*.jpg") == (["in\\xff/caf\\xe9.jpg"], "")


def test_a_file_that_is_really_called_as_another_is_spelled_has_an_id_of_its_own(tmp_path: Path) -> None:
    for name in (b"caf\xe9.jpg", rb"caf\xe9.jpg"):
        with open(os.fsencode(tmp_path) + b"/" + name, "wb") as file:
            file.write(b"x")
    listing = list_input([str(tmp_path)], ColumnChoices())
    assert sorted(read_unit_ids(listing, 0)[0]) == [r"caf\x5cxe9.jpg", r"caf\xe9.jpg"]
    refuse_duplicate_ids(listing)


def test_a_tree_of_a_thousand_levels_needs_no_recursion(tmp_path: Path) -> None:
    deep = [f"{tmp_path}/in" + "/a" * depth for depth in range(1200)]
    for path in deep:
        os.mkdir(path)
    Path(f"{deep[-1]}/x.jpg").touch()
    found = [find_files(f"{tmp_path}/{pattern}", (".jpg",)).files for pattern in ("in", "in/**/*.jpg")]
    os.unlink(f"{deep[-1]}/x.jpg")
    for path in reversed(deep):  # what cleans up after tests may recurse
        os.rmdir(path)
    assert [len(files) for files in found] == [1, 1]


def test_pipes_are_left_out_and_folders_that_cannot_be_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "a.jpg").write_bytes(b"x")
    path = str(tmp_path)
    while len(path) < 4000:
        os.mkdir(path := f"{path}/{'d' * 80}")
    here = os.open(path, os.O_RDONLY)
    os.mkdir("e" * 200, dir_fd=here)  # its path is longer than any that the system takes
    os.close(here)
    files, left_out = names_of(str(tmp_path))
    assert files == ["a.jpg"]
    assert "1 pipes, sockets or devices (pipe.jpg)" in left_out
    assert "1 that cannot be read (eee" in left_out
