"""Images of the web, from a server on loopback that answers well, badly, slowly, for ever or not at all."""

import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.sources.web.client import WebClient, system_lookup
from pipeline.sources.web.limits import WebLimits
from schemas.errors import Failure, RowError
from tests.web_server import PNG, Web, own_certificate, serving

LIMIT = 1_000_000
QUICK = WebLimits(allow_private=True, waits_s=(0.0, 0.0), seconds=20, user_agent="test-agent/1")
SLOW = replace(QUICK, seconds=0.4)

Make = Callable[..., WebClient]


@pytest.fixture
def client() -> Iterator[Make]:
    """Makes clients, and closes them."""
    made = []

    def make(limits: WebLimits = QUICK, lookup: Callable[[str], Sequence[str]] = system_lookup) -> WebClient:
        made.append(WebClient(limits, lookup))
        return made[-1]

    yield make
    for one in made:
        one.close()


def failure_of(client: WebClient, url: str, max_bytes: int = LIMIT) -> Failure:
    with pytest.raises(RowError) as caught:
        client.image(url, max_bytes)
    assert caught.value.failure.stage == "fetch"
    return caught.value.failure


@pytest.mark.parametrize(
    "path",
    [
        *("/ok", "/chunked", "/no-length", "/gzip", "/ok?a=b%2Fc#part", "/redirects/4"),
        *("/429-once", "/503-twice", "/reset-once", "/truncated-once", "/noai-for-another"),
        *("/early-hints", "/trailers", "/to-a-fragment"),
    ],
)
def test_an_image_is_fetched_however_it_comes(web: Web, client: Make, path: str) -> None:
    assert client().image(web.url(path), LIMIT) == PNG


@pytest.mark.parametrize(
    ("path", "type", "tries"),
    [
        ("/404", "NotFound", 1),
        ("/410", "Gone", 1),
        ("/403", "Forbidden", 1),
        ("/401", "Forbidden", 1),
        ("/418", "BadStatus", 1),
        ("/204", "BadStatus", 1),
        ("/to-nowhere", "BadStatus", 1),
        ("/429", "RateLimited", 3),
        ("/429-for-long", "RateLimited", 1),
        ("/429-by-date", "RateLimited", 1),
        ("/500", "ServerError", 3),
        ("/501", "ServerError", 1),
        ("/truncated", "Truncated", 3),
        ("/truncated-chunk", "Truncated", 3),
        ("/length-of-a-petabyte", "TooLarge", 1),
        ("/for-ever", "TooLarge", 1),
        ("/gzip-bomb", "TooLarge", 1),
        ("/gzip-twice", "BadEncoding", 1),
        ("/gzip-cut", "BadEncoding", 1),
        ("/gzip-not", "BadEncoding", 1),
        ("/gzip-and-more", "BadEncoding", 1),
        ("/brotli", "BadEncoding", 1),
        ("/no-http", "BadResponse", 1),
        ("/length-of-words", "BadResponse", 1),
        ("/length-below-zero", "BadResponse", 1),
        ("/length-and-chunks", "BadResponse", 1),
        ("/two-lengths", "BadResponse", 1),
        ("/chunk-of-exabytes", "Truncated", 3),
        ("/image-alone", "BadResponse", 1),
        ("/headers-for-ever", "BadResponse", 1),
        ("/trailers-for-ever", "BadResponse", 1),
        ("/trailers-for-ever-later", "BadResponse", 1),
        ("/chunk-of-words", "BadResponse", 1),
        ("/status-without-end", "BadResponse", 1),
        ("/latin-1-headers", "NotFound", 1),
        ("/latin-1-type", "NotAnImage", 1),
        ("/html", "NotAnImage", 1),
        ("/json", "NotAnImage", 1),
        ("/noai", "NoAI", 1),
        ("/noimageai", "NoAI", 1),
        ("/noai-for-us", "NoAI", 1),
        ("/round", "TooManyRedirects", 6),
        ("/redirects/5", "TooManyRedirects", 1),
        ("/to-metadata", "PrivateAddress", 1),
        ("/to-a-file", "BadURL", 1),
        ("/to-rubbish", "BadURL", 1),
        ("/to-port-0", "BadURL", 1),
        ("/to-port-65536", "BadURL", 1),
        ("/to-data", "BadURL", 1),
    ],
)
def test_each_failure_has_its_kind_and_is_tried_as_often_as_it_may_pass(
    web: Web, client: Make, path: str, type: str, tries: int
) -> None:
    failure = failure_of(client(), web.url(path))
    assert failure.type == type
    assert web.counts[path] == tries
    assert failure.message == failure.message.encode("ascii", "ignore").decode()


@pytest.mark.parametrize(
    "path",
    [
        *("/says-nothing", "/stops-in-the-middle", "/drips", "/header-drips"),
        *("/early-hints-for-ever", "/chunk-without-end"),
    ],
)
def test_a_slow_server_costs_the_rows_time_and_no_more(web: Web, client: Make, path: str) -> None:
    failure = failure_of(client(SLOW), web.url(path))
    assert failure.type == "TimedOut"
    assert "--row-seconds" in failure.message


@pytest.mark.parametrize("path", ["/says-nothing", "/stops-in-the-middle"])
def test_a_server_that_falls_silent_is_left_before_the_rows_time_is_over(web: Web, client: Make, path: str) -> None:
    failure = failure_of(client(replace(QUICK, read_seconds=0.1)), web.url(path))
    assert failure.type == "TimedOut"
    assert "--fetch-read-seconds" in failure.message


def test_a_wait_that_the_rows_time_has_no_room_for_is_not_begun(web: Web, client: Make) -> None:
    failure = failure_of(client(replace(QUICK, waits_s=(10_000.0,))), web.url("/500"))
    assert failure.type == "ServerError"
    assert "1 try" in failure.message


def test_the_limit_of_bytes_is_exact(web: Web, client: Make) -> None:
    for path in ("/ok", "/chunked", "/no-length"):
        assert client().image(web.url(path), len(PNG)) == PNG
        assert failure_of(client(), web.url(path), len(PNG) - 1).type == "TooLarge"


def test_what_is_no_image_is_said_with_its_content_type(web: Web, client: Make) -> None:
    assert "look like HTML, sent with Content-Type image/png" in failure_of(client(), web.url("/html")).message
    assert "look like JSON, sent with Content-Type application/json" in failure_of(client(), web.url("/json")).message


def test_noai_can_be_overruled(web: Web, client: Make) -> None:
    assert client(replace(QUICK, ignore_robots_tag=True)).image(web.url("/noai"), LIMIT) == PNG


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "2130706433", "0x7f.1", "0177.0.0.1", "127.1", "127.0.0.1.", "[::1]", "[::ffff:127.0.0.1]"),
        *("localhost", "LOCALHOST", "１２７.0.0.1", "0.0.0.0", "10.0.0.1", "[64:ff9b::7f00:1]", "user:pw@127.0.0.1"),
    ],
)
def test_no_spelling_of_a_private_address_is_asked(web: Web, client: Make, host: str) -> None:
    closed = client(replace(QUICK, allow_private=False))
    assert failure_of(closed, web.url("/ok", host)).type == "PrivateAddress"
    assert not web.connections


@pytest.mark.parametrize(
    "addresses", [["127.0.0.1"], ["8.8.8.8", "127.0.0.1"], ["::ffff:127.0.0.1"], ["169.254.169.254"], ["rubbish"]]
)
def test_a_name_that_leads_to_a_private_address_is_not_asked(web: Web, client: Make, addresses: list[str]) -> None:
    closed = client(replace(QUICK, allow_private=False), lambda _: addresses)
    failure = failure_of(closed, web.url("/ok", "cdn.test"))
    assert failure.type == ("HostNotFound" if addresses == ["rubbish"] else "PrivateAddress")
    assert "cdn.test" in failure.message
    assert not web.connections


def test_a_connection_is_to_the_very_address_that_was_checked(web: Web, client: Make) -> None:
    answers = [["169.254.169.254"], ["127.0.0.1"]]
    one = client(QUICK, lambda _: answers.pop())
    assert one.image(web.url("/ok", "rebound.test"), LIMIT) == PNG
    assert answers == [["169.254.169.254"]]  # what a second look would have found


def test_a_redirect_to_a_name_that_leads_to_a_private_address_is_not_followed(web: Web, client: Make) -> None:
    one = client(QUICK, {"a.test": ["127.0.0.1"], "other.test": ["169.254.169.254"]}.__getitem__)
    failure = failure_of(one, web.url("/to-another", "a.test"))
    assert failure.type == "PrivateAddress"
    assert "other.test" in failure.message


def test_hosts_that_are_not_allowed_are_not_even_resolved(web: Web, client: Make) -> None:
    asked = []

    def lookup(host: str) -> list[str]:
        asked.append(host)
        return ["127.0.0.1"]

    one = client(replace(QUICK, allow_hosts=("*.good.test",), deny_hosts=("bad.good.test",)), lookup)
    assert one.image(web.url("/ok", "a.good.test"), LIMIT) == PNG
    assert failure_of(one, web.url("/ok", "bad.good.test")).type == "HostNotAllowed"
    assert failure_of(one, web.url("/ok", "other.test")).type == "HostNotAllowed"
    assert failure_of(one, web.url("/to-another", "a.good.test")).type == "HostNotAllowed"
    assert asked == ["a.good.test"]


@pytest.mark.parametrize(
    ("path", "asked"), [("/to-latin-1", "/caf%E9/a%20b?c=%E9"), ("/to-utf-8", "/caf%C3%A9")], ids=["latin 1", "UTF-8"]
)
def test_a_redirect_with_bytes_that_are_no_ascii_leads_to_those_very_bytes(
    web: Web, client: Make, path: str, asked: str
) -> None:
    assert failure_of(client(), web.url(path)).type == "NotFound"
    assert [ask.path for ask in web.asks] == [path, asked]


def test_a_server_that_vouches_for_itself_is_asked_nothing(tmp_path: Path, client: Make) -> None:
    with serving(own_certificate(tmp_path, "localhost")) as web:
        failure = failure_of(client(), web.url("/ok", "localhost").replace("http", "https"))
        assert failure.type == "BadCertificate"
        assert web.asks == []


_FETCH = """
import dataclasses, sys
from pipeline.sources.web.client import WebClient
from pipeline.sources.web.limits import WebLimits
from schemas.errors import RowError
client = WebClient(WebLimits(allow_private=True, waits_s=(), seconds=60, user_agent="x"))
try:
    sys.stdout.buffer.write(client.image(sys.argv[1], 1_000_000))
except RowError as error:
    sys.stdout.write(error.failure.type)
client.close()
"""


def fetched_trusting(certificate: Path, url: str) -> bytes:
    """The image, or what is wrong, that a process gets which trusts a certificate: it reads them once, as it starts."""
    environment = {**os.environ, "SSL_CERT_FILE": str(certificate)}
    return subprocess.run([sys.executable, "-c", _FETCH, url], env=environment, stdout=subprocess.PIPE).stdout


def test_redirects_lead_from_https_to_http_and_back_and_take_no_password_along(web: Web, tmp_path: Path) -> None:
    with serving(own_certificate(tmp_path, "localhost")) as secure:
        there = secure.url("/ok", "localhost").replace("http", "https")
        back = web.url(f"/to?{there}", "localhost")
        start = secure.url(f"/to?{back}", "user:pw@localhost").replace("http:", "https:", 1)
        assert fetched_trusting(tmp_path / "server.pem", start) == PNG
        first, third = (ask.headers for ask in secure.asks)
        (second,) = (ask.headers for ask in web.asks)
    assert "authorization" in first
    assert "authorization" not in {**second, **third}


def test_a_certificate_of_another_host_is_not_believed(tmp_path: Path) -> None:
    with serving(own_certificate(tmp_path, "another.test")) as secure:
        url = secure.url("/ok", "localhost").replace("http", "https")
        assert fetched_trusting(tmp_path / "server.pem", url) == b"BadCertificate"
        assert secure.asks == []


def test_a_redirect_to_a_server_that_vouches_for_itself_is_not_followed(web: Web, tmp_path: Path, client: Make) -> None:
    with serving(own_certificate(tmp_path, "localhost")) as secure:
        there = secure.url("/ok", "localhost").replace("http", "https")
        assert failure_of(client(), web.url(f"/to?{there}")).type == "BadCertificate"
        assert secure.asks == []


def test_two_hundred_hosts_are_asked_by_name(web: Web, client: Make) -> None:
    one = client(replace(QUICK, connections=32, per_host=2), lambda _: ["127.0.0.1"])
    urls = [web.url(f"/ok?{number}", f"host{number % 200}.test") for number in range(400)]
    with ThreadPoolExecutor(32) as pool:
        found = list(pool.map(lambda url: one.image(url, LIMIT), urls))
    assert found == [PNG] * 400
    assert {ask.headers["host"] for ask in web.asks} == {f"host{number}.test:{web.port}" for number in range(200)}


def test_connections_are_kept_and_bounded_for_each_host(web: Web, client: Make) -> None:
    one = client(replace(QUICK, per_host=3))
    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(lambda _: one.image(web.url("/ok"), LIMIT), range(60))) == [PNG] * 60
    assert web.connections <= 3


@pytest.mark.parametrize(
    "error",
    [socket.gaierror(socket.EAI_NONAME, "x"), UnicodeError("label too long"), socket.gaierror(socket.EAI_AGAIN, "x")],
)
def test_a_host_that_is_not_there_is_named(client: Make, error: Exception) -> None:
    def lookup(_: str) -> list[str]:
        raise error

    failure = failure_of(client(QUICK, lookup), "http://gone.test/a.jpg")
    assert failure.type == "HostNotFound"
    assert "gone.test" in failure.message


def test_a_port_where_nobody_listens_is_tried_again_and_given_up(client: Make) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        failure = failure_of(client(), f"http://127.0.0.1:{taken.getsockname()[1]}/a.jpg")
    assert failure.type == "ConnectionFailed"
    assert "3 tries" in failure.message


@pytest.mark.parametrize(
    "url",
    [
        *(
            "http://",
            "http:///a.jpg",
            "http://:80/a",
            "https://host:99999/a",
            "http://host:port/a",
            "http://[/a",
            "http:a",
        ),
        *("http://a\r\nX: y/", "http://a/\x00", "http://999.1.1.1/", "http://.../", "http://0x/"),
    ],
)
def test_what_is_no_url_is_refused_by_name(client: Make, url: str) -> None:
    assert failure_of(client(), url).type == "BadURL"


@pytest.mark.parametrize("path", ["/404", "/round", "/500", "/html", "/for-ever", "/says-nothing", "/to-loopback"])
def test_no_message_holds_what_a_url_keeps_secret(web: Web, client: Make, path: str) -> None:
    url = web.url(f"{path}?X-Amz-Signature=SECRET1&token=SECRET2", "user:SECRET3@127.0.0.1")
    failure = failure_of(client(replace(SLOW, waits_s=())), url)
    assert not re.search("SECRET|user", failure.message)


def test_user_and_password_are_sent_to_their_host_alone(web: Web, client: Make) -> None:
    one = client(QUICK, lambda _: ["127.0.0.1"])
    assert one.image(web.url("/to-another", "user:pw@a.test"), LIMIT) == PNG
    first, second = (ask.headers for ask in web.asks)
    assert first["authorization"] == "basic dxnlcjpwdw=="
    assert "authorization" not in second


def test_the_user_agent_is_ours_or_the_one_that_was_given(web: Web, client: Make) -> None:
    client().image(web.url("/ok"), LIMIT)
    assert web.asks[0].headers["user-agent"] == "test-agent/1"
    assert web.asks[0].headers["accept-encoding"] == "identity"
    assert "cookie" not in web.asks[0].headers


@pytest.mark.parametrize("use_proxies", [True, False])
def test_proxies_of_the_environment_are_asked_where_they_are_wanted(
    web: Web, client: Make, use_proxies: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", web.url("", "user:SECRET@127.0.0.1"))
    monkeypatch.setenv("no_proxy", "direct.test")
    one = client(replace(QUICK, use_proxies=use_proxies, waits_s=()), {"direct.test": ["127.0.0.1"]}.__getitem__)
    assert one.image(web.url("/ok", "direct.test"), LIMIT) == PNG
    if use_proxies:
        assert one.image("http://far.test/ok", LIMIT) == PNG
        assert failure_of(one, "http://169.254.169.254/ok").type == "PrivateAddress"
    else:
        with pytest.raises(KeyError):
            one.image("http://far.test/ok", LIMIT)
    assert [ask.path for ask in web.asks][1:] == ["http://far.test/ok"] * use_proxies
