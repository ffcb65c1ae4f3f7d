"""A cluster that goes away is noticed, said and waited for; its processes are sockets that a test can close."""

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from pipeline.environment import check_wait, head_address
from pipeline.execution.cluster_watch import Absence, ClusterLost, Part, TimeLimits, Watch, Wishes, watched
from schemas.errors import Refused
from schemas.job import PLACEMENT, JobSettings

QUICK = TimeLimits(every_s=0.02, refused_s=0.1, silent_s=0.3, answer_s=0.2, grace_s=0.3)


@contextmanager
def listening(answer: bytes = b"settings") -> Iterator[socket.socket]:
    """A server that says one thing to everyone who comes; one that says nothing hangs up on them."""

    def serve() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:  # the test has closed it
                return
            with connection:
                connection.recv(100)
                connection.sendall(answer)

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            with suppress(OSError):
                server.shutdown(socket.SHUT_RDWR)  # closing alone wakes no accept
            thread.join()


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


def wait_for_loss(parts: list[Part], limits: TimeLimits) -> None:
    with watched(Watch(parts=parts, release=never, limits=limits)):
        time.sleep(60)


def lose(server: socket.socket, parts: list[Part]) -> None:
    """Wait for something in a call that does not end, while a part goes away."""
    with watched(Watch(parts=parts, release=never, limits=QUICK)):
        server.shutdown(socket.SHUT_RDWR)
        server.close()
        time.sleep(60)


@pytest.mark.parametrize("answer", [b"settings", b""], ids=["answers", "hangs up"])
def test_a_cluster_that_is_there_interrupts_nothing(answer: bytes) -> None:
    with listening(answer) as server, watched(Watch(parts=[part_of(server)], release=never, limits=QUICK)) as watch:
        time.sleep(0.5)
        watch.check(RuntimeError("of another cause"))


def test_a_part_that_is_stopped_is_lost_though_the_system_still_takes_connections_for_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:  # nobody answers
        part = part_of(server, "the head")
        with pytest.raises(ClusterLost, match="^the cluster is lost: the head at .* has not answered for"):
            wait_for_loss([part], QUICK)


def test_one_question_that_took_long_proves_nothing_as_after_a_driver_that_was_stopped_with_its_ray() -> None:
    absence = Absence(began=100)
    assert not absence.lasts(now=160, most_s=18)
    assert absence.lasts(now=171, most_s=18)


def test_a_ray_that_ends_with_the_work_is_not_lost() -> None:
    with listening() as server, watched(Watch(parts=[part_of(server)], release=never, limits=QUICK)) as watch:
        watch.leave()
        server.shutdown(socket.SHUT_RDWR)
        server.close()
        time.sleep(1)  # as long as a loss takes to end this process
    assert watch.lost is None


def test_what_ray_raises_before_is_the_loss_that_caused_it() -> None:
    with listening() as server:
        part = part_of(server, "the raylet")
    with pytest.raises(ClusterLost, match="the raylet at"):
        Watch(parts=[part], release=never).check(RuntimeError("Ray's own words"))


STUCK = """
import sys, time
from pathlib import Path
from pipeline.execution.cluster_watch import Absence, ClusterLost, Part, TimeLimits, Watch, watched
part = Part(what="the head", host="127.0.0.1", port=int(sys.argv[1]))
quick = TimeLimits(every_s=0.02, refused_s=float(sys.argv[3]), grace_s=0.3)
with watched(Watch(parts=[part], release=Path(sys.argv[2]).unlink, limits=quick)) as watch:
    try:
        time.sleep(60 if quick.refused_s < 1 else 0)
        watch.check(RuntimeError("of Ray, which has noticed before"))
    except ClusterLost:
        time.sleep(60)  # as Ray may, which asks a head that is gone
"""


@pytest.mark.parametrize("refused_s", [0.1, 100], ids=["noticed here", "noticed by Ray"])
def test_a_driver_that_does_not_come_out_of_ray_is_ended_with_its_lock_released(
    tmp_path: Path, refused_s: float
) -> None:
    with listening() as server:
        port = server.getsockname()[1]
    (tmp_path / "lock").touch()
    command = [sys.executable, "-c", STUCK, str(port), str(tmp_path / "lock"), str(refused_s)]
    root = Path(__file__).parents[2]
    ended = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=40, check=False)
    assert ended.returncode == 1
    assert ended.stderr.startswith(f"\nerror: the cluster is lost: the head at 127.0.0.1:{port} ")
    assert ended.stderr.endswith("What is done stays; run the same command again to go on.\n")
    assert not (tmp_path / "lock").exists()


AGAIN = """
import sys
from pathlib import Path
from pipeline.execution.cluster_watch import ClusterLost, Wishes, going_on, num_losses

def work():
    print(num_losses(), sys.argv[1:], Path("lock").exists(), flush=True)
    if num_losses() < int(sys.argv[1]):
        raise ClusterLost("the cluster is lost: x")

Path("lock").touch()
going_on(work, Wishes(wait_s=float(sys.argv[2])), Path("lock").unlink)
"""


def begun_again(folder: Path, losses: int, wait_s: float) -> subprocess.CompletedProcess[str]:
    (folder / "again.py").write_text(AGAIN)
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": root}
    command = [sys.executable, "-W", "error", "again.py", str(losses), str(wait_s)]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=200, check=False
    )


def test_a_command_that_waits_for_its_cluster_is_begun_again_as_it_was(tmp_path: Path) -> None:
    ended = begun_again(tmp_path, 2, 5)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines() == [f"{number} ['2', '5'] True" for number in range(3)]
    assert ended.stderr.count("the cluster is lost: x: waiting up to 5 s for it; what is done stays") == 2


@pytest.mark.parametrize(("losses", "wait_s", "times"), [(1, 0, 1), (1000, 5, 21)])
def test_nobody_waits_unasked_or_for_ever(tmp_path: Path, losses: int, wait_s: float, times: int) -> None:
    ended = begun_again(tmp_path, losses, wait_s)
    assert ended.returncode == 1
    assert len(ended.stdout.splitlines()) == times


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


def test_what_one_of_several_jobs_wishes_of_their_ray_they_all_have() -> None:
    plain, chatty = (JobSettings(input=("in",), output="out", worker_logs=logs, dashboard=logs) for logs in (0, 1))
    assert Wishes.of([plain]) == Wishes()
    assert Wishes.of([plain, chatty]) == Wishes(dashboard=True, worker_logs=True)
