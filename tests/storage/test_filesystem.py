import os
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from pipeline.storage import filesystem as fs

pytest_plugins = ["tests.object_store"]


@pytest.fixture(params=["local", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path) if request.param == "local" else request.getfixturevalue("bucket")


def test_what_is_written_is_read_back_whole_and_in_part(root: str) -> None:
    url = fs.join(root, "new", "folder", "a.bin")
    fs.write_atomic(url, b"0123456789")
    assert fs.read_bytes(url) == b"0123456789"
    assert fs.read_bytes(url, 4) == b"0123"
    assert fs.read_bytes(url, 4000) == b"0123456789"
    with fs.open_url(url) as file:
        file.seek(-3, os.SEEK_END)
        assert file.read() == b"789"


def test_an_empty_file_is_read_as_no_bytes(root: str) -> None:
    fs.write_atomic(fs.join(root, "empty"), b"")
    assert fs.read_bytes(fs.join(root, "empty"), 10) == b""


def test_a_second_write_replaces_the_first_and_leaves_nothing_else(root: str) -> None:
    url = fs.join(root, "a.bin")
    fs.write_atomic(url, b"old")
    fs.write_atomic(url, b"new")
    assert fs.read_bytes(url) == b"new"
    assert [file.url for file in fs.list_folder(root, (".bin", ".tmp"))] == [url]


def test_a_new_file_is_seen_at_once(root: str) -> None:
    assert fs.list_folder(root, (".a",)) == []
    assert not fs.exists(fs.join(root, "x.a"))
    fs.write_atomic(fs.join(root, "x.a"), b"1")
    assert fs.exists(fs.join(root, "x.a"))
    assert len(fs.list_folder(root, (".a",))) == 1


def test_a_file_a_folder_and_nothing_can_be_deleted(root: str) -> None:
    for name in ("a.jpg", "d/b.jpg", "d/e/c.jpg", "keep.jpg"):
        fs.write_atomic(fs.join(root, name), b"x")
    for name in ("a.jpg", "d", "d", "none.jpg"):
        fs.delete(fs.join(root, name))
    assert [file.url for file in fs.list_folder(root, (".jpg",))] == [fs.join(root, "keep.jpg")]


NAMES = ("out[1]", "out?", "out*", "out#1", "out 1", "out%20", "öut+&='", "{out}", "out?x#y")


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_of_our_own_is_no_pattern(root: str, name: str) -> None:
    for beside in ("out", "out1", "outx", name):
        fs.write_atomic(fs.join(root, beside, "units", "a.parquet"), b"x")
    mine = fs.join(root, name)
    assert [file.url for file in fs.list_folder(mine)] == [fs.join(mine, "units", "a.parquet")]
    fs.delete(fs.join(mine, "units"))
    assert fs.list_folder(mine) == []
    assert not fs.exists(mine) or fs.local_path(mine)
    assert len(fs.list_folder(root)) == 3


def test_a_thousand_files_and_one_are_deleted_and_no_neighbour(bucket: str) -> None:
    filesystem, key = fs.remote(bucket)
    filesystem.pipe({f"{key}/units/{number}": b"" for number in range(1001)})
    fs.write_atomic(f"{bucket}/units2/a", b"x")
    fs.delete(f"{bucket}/units")
    assert [file.url for file in fs.list_folder(bucket)] == [f"{bucket}/units2/a"]


@pytest.mark.parametrize("name", ["a b.png", "a%20b.png", "café.png", "a#1.png", "a+b.png", "a?b", "a\nb", "~", "a::b"])
def test_a_file_uri_names_the_file_that_made_it(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(name.encode())
    uri = (tmp_path / name).as_uri()
    path = uri.removeprefix("file://")
    for spelling in (uri, f"file://localhost{path}", f"FILE:{path}", f"{tmp_path}/{name}"):
        assert fs.read_bytes(spelling) == name.encode()
        assert fs.absolute(spelling) == f"{tmp_path}/{name}"


@pytest.mark.parametrize("uri", ["file://other/a.png", "file://a.png", "file://"])
def test_a_file_uri_of_another_machine_is_refused(uri: str) -> None:
    with pytest.raises(fs.UnsupportedScheme, match="must be file:///PATH"):
        fs.read_bytes(uri)


def test_a_name_that_is_not_utf_8_has_a_url_and_is_spelled_in_ascii(tmp_path: Path) -> None:
    path = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9 %.png")
    url = fs.as_url(path)
    fs.write_atomic(url, b"x")
    assert url == f"file://{tmp_path}/caf%E9%20%25.png"
    assert fs.local_path(url) == path
    assert [file.url for file in fs.list_folder(str(tmp_path))] == [url]
    assert fs.spelled(url) == f"{tmp_path}/caf\\xe9 %.png"


@pytest.mark.parametrize(
    ("name", "spelled"),
    [
        pytest.param(b"caf\xe9.png", r"caf\xe9.png", id="a byte"),
        pytest.param(rb"caf\xe9.png", r"caf\x5cxe9.png", id="its letters"),
        pytest.param(rb"caf\x5cxe9.png", r"caf\x5cx5cxe9.png", id="their letters"),
        pytest.param(rb"\x5c", r"\x5cx5c", id="a backslash's"),
        pytest.param(b"caf\\\xe9.png", r"caf\\xe9.png", id="a backslash and a byte"),
        pytest.param(rb"a\b\x41\xE9\ x\\x.png", r"a\b\x41\xE9\ x\\x.png", id="any others"),
    ],
)
def test_no_two_names_are_spelled_alike_and_ordinary_ones_as_they_are(name: bytes, spelled: str) -> None:
    assert fs.spelled(fs.as_url(os.fsdecode(b"/in/" + name))) == f"/in/{spelled}"


@pytest.mark.parametrize(
    ("url", "what"),
    [
        pytest.param("s3://KEY:SECRET@bucket/a", "a user or password", id="keys"),
        pytest.param("http://me:SECRET@host/a", "a user or password", id="password"),
        pytest.param("https://host/a?X-Amz-Signature=SECRET", "a key or signature", id="signed"),
    ],
)
def test_a_url_with_a_secret_is_refused_without_it(url: str, what: str) -> None:
    with pytest.raises(fs.UnsupportedScheme, match=what) as caught:
        fs.open_url(url)
    assert "SECRET" not in str(caught.value)


def test_a_version_of_an_object_is_read_and_never_written(bucket: str) -> None:
    with pytest.raises(fs.UnsupportedScheme, match="versionId"):
        fs.write_atomic(f"{bucket}/a?versionId=1", b"x")


def test_what_is_not_there_is_a_file_not_found(root: str) -> None:
    with pytest.raises(FileNotFoundError):
        fs.read_bytes(fs.join(root, "none"), 10)
    with pytest.raises(FileNotFoundError):
        fs.open_url(fs.join(root, "none"))


def test_a_reader_never_sees_a_torn_file(tmp_path: Path) -> None:
    url = str(tmp_path / "a.bin")
    contents = {bytes([letter]) * 1_000_000 for letter in b"ab"}
    fs.write_atomic(url, min(contents))
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            for content in contents:
                fs.write_atomic(url, content)

    writer = threading.Thread(target=write)
    writer.start()
    seen = {fs.read_bytes(url) for _ in range(200)}
    stop.set()
    writer.join()
    assert seen <= contents


def test_a_failed_write_names_its_file_and_leaves_the_old_one_and_nothing_else(tmp_path: Path) -> None:
    url = str(tmp_path / "a.bin")
    fs.write_atomic(url, b"old")
    # a process that may not write a file of more than 1000 bytes fails half-way through, as on a full disk
    code = """
        import resource, sys
        from pipeline.storage import filesystem as fs
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        for write, name in ((fs.write_atomic, "a.bin"), (fs.create_new, "b.bin")):
            try:
                write(f"{sys.argv[1]}/{name}", b"new" * 1000)
            except OSError as error:
                print(error)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code), str(tmp_path)], capture_output=True, text=True)
    assert done.stdout.splitlines() == [
        f"[Errno 27] File too large: '{tmp_path}/{name}'" for name in ("a.bin", "b.bin")
    ]
    assert os.listdir(tmp_path) == ["a.bin"]
    assert fs.read_bytes(url) == b"old"


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for read in (fs.read_bytes, fs.open_url):
        with pytest.raises(OSError, match="not a regular file"):
            read(str(tmp_path / "pipe"))
    with pytest.raises(OSError, match="not a regular file"):
        fs.read_bytes("/dev/zero", 10)


def test_local_paths_have_one_spelling(tmp_path: Path) -> None:
    spellings = (str(tmp_path), f"{tmp_path}/", f"file://{tmp_path}", os.path.relpath(tmp_path))
    assert {fs.absolute(spelling) for spelling in spellings} == {str(tmp_path)}


@pytest.mark.parametrize(
    ("parts", "joined"),
    [
        pytest.param(("out/", "units", "a"), "out/units/a", id="local"),
        pytest.param(("/", "a"), "/a", id="root"),
        pytest.param(("s3://b/", "/x/", "y"), "s3://b/x/y", id="bucket"),
        pytest.param(("s3://b", ""), "s3://b", id="nothing to add"),
        pytest.param(("s3:", "x"), "s3:/x", id="a folder of that name"),
        pytest.param(("file:///", "x"), "file:///x", id="root as a URI"),
    ],
)
def test_parts_are_joined_by_one_slash(parts: tuple[str, ...], joined: str) -> None:
    assert fs.join(*parts) == joined


def test_a_missing_package_is_named_with_the_line_that_installs_it() -> None:
    with pytest.raises(fs.UnsupportedScheme, match=r"az:// needs .*pip install adlfs \(az://b/x\)"):
        fs.read_bytes("az://b/x")


def test_an_unknown_scheme_is_named() -> None:
    with pytest.raises(fs.UnsupportedScheme, match="nothing here opens foo:// paths, got foo://b/x"):
        fs.exists("foo://b/x")


@pytest.mark.parametrize("url", ["github://x/y", "reference://x", "generic://x", "simplecache://x", "dir://x"])
def test_a_store_that_needs_more_than_a_url_is_refused_by_name(url: str) -> None:
    with pytest.raises(fs.UnsupportedScheme, match=f"{url.partition(':')[0]}:// paths cannot be opened .*, got {url}"):
        fs.exists(url)


@pytest.mark.parametrize("url", ["s3://", "s3:///x", "gs://", "hf://"])
def test_a_store_without_a_bucket_is_refused_and_no_folder_of_this_machine(url: str) -> None:
    assert not fs.is_local(fs.join(url, "x"))
    with pytest.raises(fs.UnsupportedScheme, match="a URL of a store must name its bucket, got"):
        fs.exists(fs.join(url, "x"))


def test_nothing_is_written_to_http() -> None:
    with pytest.raises(fs.UnsupportedScheme, match="cannot be written"):
        fs.write_atomic("https://example.com/x", b"x")


def test_a_store_without_keys_is_an_os_error_that_says_so(tmp_path: Path) -> None:
    code = (
        "from pipeline.storage import filesystem as fs\n"
        "try: fs.read_bytes('s3://b/x')\nexcept OSError as error: print(error)"
    )
    keys = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    environment = keys | {"AWS_EC2_METADATA_DISABLED": "true", "HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert "NoCredentialsError" in done.stdout


def test_importing_storage_loads_no_client_of_a_store() -> None:
    code = "import sys, pipeline.storage.filesystem; print({'s3fs', 'aiohttp', 'botocore'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
