import os
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from pipeline import storage
from pipeline.finding import find_files
from pipeline.storage import FileInfo

pytest_plugins = ["tests.object_store"]


@pytest.fixture(params=["local", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path) if request.param == "local" else request.getfixturevalue("bucket")


def list_files(url: str, suffixes: tuple[str, ...]) -> list[FileInfo]:
    return list(find_files(url, suffixes).files)


def test_what_is_written_is_read_back_whole_and_in_part(root: str) -> None:
    url = storage.join(root, "new", "folder", "a.bin")
    storage.write_atomic(url, b"0123456789")
    assert storage.read_bytes(url) == b"0123456789"
    assert storage.read_bytes(url, 4) == b"0123"
    assert storage.read_bytes(url, 4000) == b"0123456789"
    with storage.open_url(url) as file:
        file.seek(-3, os.SEEK_END)
        assert file.read() == b"789"


def test_an_empty_file_is_read_as_no_bytes(root: str) -> None:
    storage.write_atomic(storage.join(root, "empty"), b"")
    assert storage.read_bytes(storage.join(root, "empty"), 10) == b""


def test_a_second_write_replaces_the_first_and_leaves_nothing_else(root: str) -> None:
    url = storage.join(root, "a.bin")
    storage.write_atomic(url, b"old")
    storage.write_atomic(url, b"new")
    assert storage.read_bytes(url) == b"new"
    assert [file.url for file in list_files(root, (".bin", ".tmp"))] == [url]


def test_a_new_file_is_seen_at_once(root: str) -> None:
    assert list_files(root, (".a",)) == []
    assert not storage.exists(storage.join(root, "x.a"))
    storage.write_atomic(storage.join(root, "x.a"), b"1")
    assert storage.exists(storage.join(root, "x.a"))
    assert len(list_files(root, (".a",))) == 1


def test_a_folder_is_listed_with_all_below_it_sorted_and_without_hidden_files(root: str) -> None:
    for name in ("b.jpg", "a/z.JPG", "a/.hidden.jpg", ".cache/c.jpg", "notes.txt", "a.d/y.jpg"):
        storage.write_atomic(storage.join(root, "in", name), name.encode())
    found = list_files(storage.join(root, "in"), (".jpg",))
    assert [file.url for file in found] == [storage.join(root, "in", n) for n in ("a.d/y.jpg", "a/z.JPG", "b.jpg")]
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
        storage.write_atomic(storage.join(root, name), b"x")
    found = list_files(storage.join(root, pattern), (".jpg",))
    assert [file.url for file in found] == [storage.join(root, name) for name in names]


def test_a_name_with_brackets_is_taken_as_it_is(root: str) -> None:
    url = storage.join(root, "scan [1].jpg")
    storage.write_atomic(url, b"x")
    assert [file.url for file in list_files(url, (".jpg",))] == [url]


def test_a_file_has_one_version_however_it_is_listed_and_another_after_a_change(root: str) -> None:
    url = storage.join(root, "d", "a.jpg")

    def versions() -> set[str]:
        patterns = (url, storage.join(root, "d"), storage.join(root, "d", "*.jpg"))
        return {file.version for pattern in patterns for file in list_files(pattern, (".jpg",))}

    storage.write_atomic(url, b"1")
    before = versions()
    storage.write_atomic(url, b"2")
    assert len(before) == 1
    assert before.isdisjoint(versions())


def test_a_file_a_folder_and_nothing_can_be_deleted(root: str) -> None:
    for name in ("a.jpg", "d/b.jpg", "d/e/c.jpg", "keep.jpg"):
        storage.write_atomic(storage.join(root, name), b"x")
    for name in ("a.jpg", "d", "d", "none.jpg"):
        storage.delete(storage.join(root, name))
    assert [file.url for file in list_files(root, (".jpg",))] == [storage.join(root, "keep.jpg")]


def test_what_is_not_there_is_a_file_not_found(root: str) -> None:
    with pytest.raises(FileNotFoundError):
        storage.read_bytes(storage.join(root, "none"), 10)
    with pytest.raises(FileNotFoundError):
        storage.open_url(storage.join(root, "none"))


def test_a_reader_never_sees_a_torn_file(tmp_path: Path) -> None:
    url = str(tmp_path / "a.bin")
    contents = {bytes([letter]) * 1_000_000 for letter in b"ab"}
    storage.write_atomic(url, min(contents))
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            for content in contents:
                storage.write_atomic(url, content)

    writer = threading.Thread(target=write)
    writer.start()
    seen = {storage.read_bytes(url) for _ in range(200)}
    stop.set()
    writer.join()
    assert seen <= contents


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    url = str(tmp_path / "a.bin")
    storage.write_atomic(url, b"old")
    # a process that may not write a file of more than 1000 bytes fails half-way through, as on a full disk
    code = """
        import resource, sys
        from pipeline import storage
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        try:
            storage.write_atomic(sys.argv[1], b"new" * 1000)
        except OSError:
            sys.exit(7)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code), url], check=False)
    assert done.returncode == 7
    assert os.listdir(tmp_path) == ["a.bin"]
    assert storage.read_bytes(url) == b"old"


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="not a regular file"):
        storage.read_bytes(str(tmp_path / "pipe"))


def test_local_paths_have_one_spelling(tmp_path: Path) -> None:
    spellings = (str(tmp_path), f"{tmp_path}/", f"file://{tmp_path}", os.path.relpath(tmp_path))
    assert {storage.absolute(spelling) for spelling in spellings} == {str(tmp_path)}


@pytest.mark.parametrize(
    ("parts", "joined"),
    [
        pytest.param(("out/", "units", "a"), "out/units/a", id="local"),
        pytest.param(("/", "a"), "/a", id="root"),
        pytest.param(("s3://b/", "/x/", "y"), "s3://b/x/y", id="bucket"),
        pytest.param(("s3://b", ""), "s3://b", id="nothing to add"),
    ],
)
def test_parts_are_joined_by_one_slash(parts: tuple[str, ...], joined: str) -> None:
    assert storage.join(*parts) == joined


def test_a_missing_package_is_named_with_the_line_that_installs_it() -> None:
    with pytest.raises(storage.UnsupportedScheme, match=r"az:// needs .*pip install adlfs \(az://b/x\)"):
        storage.read_bytes("az://b/x")


def test_an_unknown_scheme_is_named() -> None:
    with pytest.raises(storage.UnsupportedScheme, match="nothing here opens foo:// paths, got foo://b/x"):
        storage.exists("foo://b/x")


def test_nothing_is_written_to_http() -> None:
    with pytest.raises(storage.UnsupportedScheme, match="cannot be written"):
        storage.write_atomic("https://example.com/x", b"x")


def test_a_store_without_keys_is_an_os_error_that_says_so(tmp_path: Path) -> None:
    code = "from pipeline import storage\ntry: storage.read_bytes('s3://b/x')\nexcept OSError as error: print(error)"
    keys = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    environment = keys | {"AWS_EC2_METADATA_DISABLED": "true", "HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert "NoCredentialsError" in done.stdout


def test_importing_storage_loads_no_client_of_a_store() -> None:
    code = "import sys, pipeline.storage; print({'s3fs', 'aiohttp', 'botocore'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
