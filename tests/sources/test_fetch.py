import base64
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from pipeline.preprocess.pdf import PdfPage
from pipeline.sources.fetch import ImageFetcher, fetch
from pipeline.sources.web.client import WebClient
from pipeline.sources.web.limits import WebLimits
from pipeline.storage import filesystem as fs
from schemas.errors import Failure, RowError
from schemas.request import ImageRef
from tests.web_server import LARGE_BYTES, PDF, PNG, Web

pytest_plugins = ["tests.object_store"]

LIMIT = 1000


@pytest.fixture(params=["local", "file", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    match request.param:
        case "local":
            return str(tmp_path)
        case "file":
            return f"file://{tmp_path}"
        case _:
            return request.getfixturevalue("bucket")


def failure_of(uri: str, max_bytes: int = LIMIT) -> Failure:
    with pytest.raises(RowError) as caught:
        fetch(uri, max_bytes)
    assert caught.value.failure.stage == "fetch"
    return caught.value.failure


def test_the_bytes_of_a_uri_are_fetched_up_to_the_limit(root: str) -> None:
    uri = fs.join(root, "a b#1%20::é.jpg")
    fs.write_atomic(uri, b"x" * LIMIT)
    assert fetch(uri, LIMIT) == b"x" * LIMIT


def test_one_byte_too_many_is_too_large(root: str) -> None:
    uri = fs.join(root, "a.jpg")
    fs.write_atomic(uri, b"x" * (LIMIT + 1))
    failure = failure_of(uri)
    assert failure.type == "TooLarge"
    assert "at most 1000 bytes" in failure.message
    assert "--max-image-bytes" in failure.message


def test_an_empty_file_says_so(root: str) -> None:
    uri = fs.join(root, "a.jpg")
    fs.write_atomic(uri, b"")
    assert failure_of(uri).type == "EmptyFile"


def test_a_missing_file_is_named(root: str) -> None:
    failure = failure_of(fs.join(root, "none.jpg"))
    assert failure.type == "FileNotFound"
    assert "none.jpg" in failure.message


def test_a_missing_bucket_is_not_found(store: str) -> None:
    assert failure_of("s3://no-such-bucket/a.jpg").type == "FileNotFound"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_permission_denied(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"x")
    (tmp_path / "a.jpg").chmod(0)
    assert failure_of(str(tmp_path / "a.jpg")).type == "PermissionDenied"


@pytest.mark.parametrize("uri", ["ftp://a/b", "httpx://a/b", "javascript://a"])
def test_other_schemes_are_refused(uri: str) -> None:
    assert failure_of(uri).type == "UnsupportedScheme"


def test_a_chain_of_filesystems_is_a_local_path_like_any_other(store: str) -> None:
    assert failure_of("simplecache::s3://bucket/a.jpg").type == "FileNotFound"
    assert failure_of("s3://bucket/a::http://127.0.0.1/a.jpg").type == "FileNotFound"


def test_a_scheme_without_its_package_says_what_to_install() -> None:
    failure = failure_of("az://b/a.jpg")
    assert failure.type == "UnsupportedScheme"
    assert "pip install adlfs" in failure.message


@pytest.mark.parametrize("name", ["", "a\0b.jpg", "x" * 300 + ".jpg"])
def test_what_is_no_file_fails_and_harms_nobody(tmp_path: Path, name: str) -> None:
    assert failure_of(f"{tmp_path}/{name}").type == "FetchFailed"


@pytest.mark.parametrize(
    ("uri", "data"),
    [
        pytest.param("data:image/png;base64," + base64.b64encode(b"\x89PNG").decode(), b"\x89PNG", id="base64"),
        pytest.param("DATA:image/png;BASE64,iVBORw%3D%3D", b"\x89PNG", id="escaped padding"),
        pytest.param("data:,%89PNG", b"\x89PNG", id="percent"),
    ],
)
def test_a_data_uri_carries_its_own_bytes(uri: str, data: bytes) -> None:
    assert fetch(uri, LIMIT) == data


@pytest.mark.parametrize(
    ("uri", "type"),
    [
        pytest.param("data:image/png;base64", "FetchFailed", id="no comma"),
        pytest.param("data:image/png;base64,@@@@", "FetchFailed", id="not base64"),
        pytest.param("data:image/png;base64," + "A" * 4000, "TooLarge", id="long base64"),
        pytest.param("data:," + "A" * 1001, "TooLarge", id="long text"),
        pytest.param("data:,", "EmptyFile", id="empty"),
    ],
)
def test_a_bad_data_uri_is_named_in_short(uri: str, type: str) -> None:
    failure = failure_of(uri)
    assert failure.type == type
    assert len(failure.message) < 500


@pytest.mark.parametrize(
    "uri",
    [
        pytest.param("http://user:SECRET@127.0.0.1:9/x.png", id="http"),
        pytest.param("s3://AKIAX:SEC/RET@bucket/x.png", id="keys with a slash"),
        pytest.param("https://host/x.png?X-Amz-Signature=SECRET", id="signed"),
        pytest.param(f"http://user:SECRET{'x' * 300}@host/x.png", id="longer than what is shown"),
    ],
)
def test_no_message_holds_the_secret_of_a_uri(uri: str) -> None:
    assert "SEC" not in failure_of(uri).message


@pytest.mark.parametrize(
    "uri",
    [
        "hf://",
        "hf://a",
        "s3://",
        "s3://bucket",
        "gs://b/x",
        "file://other/x.png",
        "file://",
        "/a" * 100_000,
        "C:\\x.png",
    ],
)
def test_what_names_no_file_is_a_failed_row(store: str, uri: str) -> None:
    assert failure_of(uri).type in ("FetchFailed", "FileNotFound", "UnsupportedScheme")


def fetcher(*roots: str) -> ImageFetcher:
    return ImageFetcher(max_bytes=LIMIT, pdf_dpi=72, roots=roots)


def outcome(fetch_image: ImageFetcher, uri: str, table: str | None) -> object:
    try:
        return fetch_image(ImageRef(uri=uri, table=table))
    except RowError as error:
        return error.failure.type


@pytest.mark.parametrize(
    "spell", [str, Path.as_uri, lambda path: f"file:{path}", lambda path: f"file://localhost{path}"]
)
def test_a_row_of_a_table_in_a_store_names_no_local_file_but_below_a_root(tmp_path: Path, spell: Any) -> None:
    (tmp_path / "a.png").write_bytes(b"x")
    uri, local, remote = spell(tmp_path / "a.png"), str(tmp_path / "t.parquet"), "s3://b/t.parquet"
    assert outcome(fetcher(), uri, None) == b"x"
    assert outcome(fetcher(), uri, local) == b"x"
    assert outcome(fetcher(), uri, remote) == "NotAllowed"
    assert outcome(fetcher(str(tmp_path)), uri, remote) == b"x"
    assert outcome(fetcher("s3://b/"), uri, local) == "NotAllowed"
    assert outcome(fetcher("s3://b/"), "data:,x", remote) == b"x"


def test_roots_are_whole_folders_and_links_do_not_lead_out(tmp_path: Path) -> None:
    for name in ("in/a.png", "in2/b.png", "out/c.png"):
        fs.write_atomic(str(tmp_path / name), b"x")
    (tmp_path / "in" / "link.png").symlink_to("../out/c.png")
    (tmp_path / "to-in").symlink_to("in")
    fetch_image, table = fetcher(str(tmp_path / "to-in")), str(tmp_path / "t.parquet")
    assert outcome(fetch_image, f"{tmp_path}/in/a.png", table) == b"x"
    assert outcome(fetch_image, f"{tmp_path}/to-in/../in/a.png", table) == b"x"
    for name in ("in2/b.png", "in/../out/c.png", "in/link.png", "to-in/link.png"):
        assert outcome(fetch_image, f"{tmp_path}/{name}", table) == "NotAllowed"
    assert outcome(fetch_image, f"{tmp_path}/in/link.png", None) == b"x"  # the user named it


def test_roots_in_a_store_are_prefixes_of_whole_names(bucket: str) -> None:
    for name in ("in/a.png", "in2/b.png"):
        fs.write_atomic(f"{bucket}/{name}", b"x")
    fetch_image = fetcher(f"{bucket}/in/")
    assert outcome(fetch_image, f"{bucket}/in/a.png", f"{bucket}/t.parquet") == b"x"
    for name in ("in2/b.png", "in/../in2/b.png", "t.png"):
        assert outcome(fetch_image, f"{bucket}/{name}", f"{bucket}/t.parquet") == "NotAllowed"


@pytest.mark.parametrize(
    "uri", ["/proc/self/environ", "/dev/zero", "/dev/fd/0", "/sys/kernel/notes", "/dev/../proc/version"]
)
def test_a_row_names_no_file_of_the_system(tmp_path: Path, uri: str) -> None:
    (tmp_path / "link.png").symlink_to(uri)
    for name in (uri, f"{tmp_path}/link.png"):
        assert outcome(fetcher(), name, f"{tmp_path}/t.parquet") in ("NotAllowed", "FetchFailed", "FileNotFound")


def test_a_pipe_that_a_row_names_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    assert outcome(fetcher(), f"{tmp_path}/pipe.png", f"{tmp_path}/t.parquet") == "FetchFailed"


def test_the_pages_of_a_pdf_are_read_where_images_are(tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_bytes(b"x")
    assert outcome(fetcher(), f"{tmp_path}/a.pdf#page=1", "s3://b/t.parquet") == "NotAllowed"


@pytest.mark.parametrize("data", [b"\xff\xd8\xff" + bytes(99), b"\x89PNG\r\n\x1a\n" + bytes(99), bytes(range(256)) * 9])
def test_bare_base64_says_what_it_lacks_in_few_words(data: bytes) -> None:
    text = base64.b64encode(data).decode()
    with pytest.raises(RowError, match=r"BareBase64: .* prefix data:image/\.\.\.;base64,") as caught:
        ImageFetcher(max_bytes=10**6, pdf_dpi=72)(ImageRef(uri=text, table="/a.parquet"))
    assert len(str(caught.value)) < 300


@pytest.fixture
def web_fetcher() -> Iterator[Callable[..., ImageFetcher]]:
    """Makes fetchers that may reach this machine, and closes their connections."""
    made: list[WebClient] = []

    def make(*roots: str, max_bytes: int = 10**7) -> ImageFetcher:
        made.append(WebClient(WebLimits(allow_private=True, waits_s=(), user_agent="test")))
        return ImageFetcher(max_bytes=max_bytes, pdf_dpi=72, roots=roots, web=made[-1])

    yield make
    for client in made:
        client.close()


@pytest.mark.parametrize("table", [None, "/t.parquet", "s3://b/t.parquet"])
def test_a_url_of_the_web_is_fetched_whoever_names_it(
    web: Web, web_fetcher: Callable[..., ImageFetcher], table: str | None
) -> None:
    fetch_image = web_fetcher()
    assert outcome(fetch_image, web.url("/ok"), table) == PNG
    assert outcome(fetch_image, web.url("/ok").replace("http", "HTTP"), table) == PNG
    assert outcome(fetch_image, web.url("/404"), table) == "NotFound"
    assert outcome(fetch_image, web.url("/empty"), table) == "EmptyFile"
    assert outcome(fetch_image, web.url("/" + "x" * 9000), table) == "FetchFailed"


def test_roots_hold_for_urls_of_the_web(web: Web, web_fetcher: Callable[..., ImageFetcher]) -> None:
    fetch_image = web_fetcher(web.url("/redirects/"))
    assert outcome(fetch_image, web.url("/redirects/1"), "/t.parquet") == PNG
    for path in ("/ok", "/redirects/../ok", "/redirects/%2e%2e/ok", "/redirects"):
        assert outcome(fetch_image, web.url(path), "/t.parquet") in ("NotAllowed", "NotFound")
    assert outcome(fetch_image, "http://127.0.0.1:1/redirects/1", "/t.parquet") == "NotAllowed"
    assert outcome(web_fetcher("s3://b"), web.url("/ok"), "/t.parquet") == "NotAllowed"


def test_a_large_image_of_the_web_waits_for_room(web: Web, web_fetcher: Callable[..., ImageFetcher]) -> None:
    asked: list[int] = []
    image = web_fetcher(max_bytes=10**7)(ImageRef(uri=web.url("/large")), asked.append)
    assert len(cast(bytes, image)) == LARGE_BYTES
    assert asked == [4 * 2**20, 10**7]
    assert outcome(web_fetcher(max_bytes=LARGE_BYTES - 1), web.url("/large"), None) == "TooLarge"


def test_a_page_of_a_pdf_of_the_web_is_fetched(web: Web, web_fetcher: Callable[..., ImageFetcher]) -> None:
    page = outcome(web_fetcher(), web.url("/a.pdf#page=2"), "/t.parquet")
    assert isinstance(page, PdfPage)
    assert (page.data, page.page) == (PDF, 2)
