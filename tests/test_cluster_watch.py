"""A cluster that goes away is noticed, said and waited for; its processes are sockets that a test can close."""

import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipeline.cluster_watch import ClusterLost, Part, Patience, Wishes, going_on, wait_for_head, watched
from pipeline.environment import check_wait, head_address
from schemas.errors import Refused
from schemas.job import PLACEMENT, JobSettings

QUICK = Patience(every_s=0.02, refused_s=0.1, silent_s=0.3, grace_s=0.3)


@contextmanager
def listening(port: int = 0) -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", port)) as server:
        yield server


def part_of(server: socket.socket, what: str = "a part") -> Part:
    return Part(what=what, host="127.0.0.1", port=server.getsockname()[1])


def never() -> None:
    raise AssertionError("nothing is to be released here")


@pytest.mark.parametrize("number", [0, 1])
def test_whichever_part_goes_away_interrupts_what_the_driver_waits_for(number: int) -> None:
    with listening() as first, listening() as second:
        servers = [first, second]
        parts = [part_of(server, what) for server, what in zip(servers, ("the head", "a raylet"), strict=True)]
        with pytest.raises(ClusterLost, match=f"^the cluster is lost: {parts[number]} has not"):
            lose(servers[number], parts)


def lose(server: socket.socket, parts: list[Part]) -> None:
    """Wait for something in a call that does not end, while a part goes away."""
    with watched(parts, never, QUICK):
        server.close()
        time.sleep(60)


def test_a_cluster_that_is_there_interrupts_nothing() -> None:
    with listening() as server, watched([part_of(server)], never, QUICK) as watch:
        time.sleep(0.3)
        watch.check(RuntimeError("of another cause"))


def test_what_ray_raises_before_is_the_loss_that_caused_it() -> None:
    with listening() as server:
        part = part_of(server, "the raylet")
    with watched([part], never, Patience(every_s=100)) as watch, pytest.raises(ClusterLost, match="the raylet at"):
        watch.check(RuntimeError("Ray's own words"))


STUCK = """
import sys, time
from pathlib import Path
from pipeline.cluster_watch import ClusterLost, Part, Patience, watched
part = Part(what="the head", host="127.0.0.1", port=int(sys.argv[1]))
quick = Patience(every_s=0.02, refused_s=0.1, grace_s=0.3)
with watched([part], Path(sys.argv[2]).unlink, quick):
    try:
        time.sleep(60)
    except ClusterLost:
        time.sleep(60)  # as Ray may, which asks a head that is gone
"""


def test_a_driver_that_does_not_come_out_of_ray_is_ended_with_its_lock_released(tmp_path: Path) -> None:
    with listening() as server:
        port = server.getsockname()[1]
    (tmp_path / "lock").touch()
    command = [sys.executable, "-c", STUCK, str(port), str(tmp_path / "lock")]
    ended = subprocess.run(
        command, cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=40, check=False
    )
    assert ended.returncode == 1
    assert ended.stderr.startswith(f"\nerror: the cluster is lost: the head at 127.0.0.1:{port} has not answered for ")
    assert ended.stderr.endswith("What is done stays; run the same command again to go on.\n")
    assert not (tmp_path / "lock").exists()


def losing(times: int) -> Callable[[], str]:
    """Work that loses its cluster so many times before it is done."""
    losses = iter(range(times))

    def work() -> str:
        if next(losses, None) is not None:
            raise ClusterLost("the cluster is lost: x")
        return "done"

    return work


def test_a_cluster_that_comes_back_is_gone_on_with(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    with listening() as server:
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{server.getsockname()[1]}")
        assert going_on(losing(2), Wishes(wait_s=5)) == "done"
    assert capsys.readouterr().err.count("the cluster is lost: x: waiting up to 5 s for it; what is done stays") == 2


def test_nobody_waits_unasked_or_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    with listening() as server:
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{server.getsockname()[1]}")
        with pytest.raises(ClusterLost, match="x$"):
            going_on(losing(1), Wishes())
        with pytest.raises(ClusterLost, match="x$"):
            going_on(losing(1000), Wishes(wait_s=5))
    with pytest.raises(ClusterLost, match=r"it has not come back within 0\.1 s"):
        going_on(losing(1), Wishes(wait_s=0.1))
    assert not wait_for_head(0)


@pytest.mark.parametrize(
    ("address", "head"),
    [
        ("10.0.0.7:6379", ("10.0.0.7", 6379)),
        ("ray://head:10001", ("head", 10001)),
        ("[::1]:6379", ("::1", 6379)),
        ("auto", None),
        ("local", None),
        ("", None),
    ],
)
def test_the_head_is_where_the_address_says(monkeypatch: pytest.MonkeyPatch, address: str, head: object) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    assert head_address() == head


@pytest.mark.parametrize("address", ["", "local"])
def test_a_ray_of_the_jobs_own_is_not_waited_for(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    check_wait(0)
    with pytest.raises(Refused, match="wait_for_cluster must be 0 for a Ray of the job's own, got 60"):
        check_wait(60)


def test_who_waits_longer_asks_for_the_same_answers() -> None:
    assert "wait_for_cluster" in PLACEMENT
    jobs = [JobSettings(input=("a",), output="o", wait_for_cluster=seconds) for seconds in (0, 30)]
    assert Wishes.of(jobs).wait_s == 30
    with pytest.raises(ValueError, match="wait_for_cluster"):
        JobSettings(input=("a",), output="o", wait_for_cluster=float("inf"))
