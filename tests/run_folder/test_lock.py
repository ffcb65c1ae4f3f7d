"""The lock: one driver a folder, and a killed one is in nobody's way for long."""

import json
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from jobs.answer import run_to_status
from pipeline.run_folder import lock as lock_module
from pipeline.run_folder.lock import NAME, FolderInUse, Timing, hold, still_holds, this_machine
from pipeline.storage import filesystem as fs
from schemas.run import STATE
from tests.lines import Lines, each_line

pytest_plugins = ["tests.object_store"]

QUICK = Timing(beat_s=0.1, stale_s=1.5)


@pytest.fixture(params=["local", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "out") if request.param == "local" else f"{request.getfixturevalue('bucket')}/out"


def change_owner(folder: str, **changes: object) -> None:
    """As if the lock were another process's."""
    url = fs.join(folder, STATE, NAME)
    owner = {"host": "h", "machine": "elsewhere", "pid": 1, "pid_started": "0", "token": "other", "beat": 0}
    fs.write_atomic(url, json.dumps({**owner, **changes}).encode())


def change_owner_once_there_is_one(folder: str) -> None:
    while not fs.exists(fs.join(folder, STATE, NAME)):
        time.sleep(0.02)
    change_owner(folder)


def test_the_second_driver_is_refused_and_told_who_is_first(folder: str) -> None:
    with hold(folder, QUICK), pytest.raises(FolderInUse, match=r"process \d+ on "):
        hold(folder, QUICK).__enter__()


def test_the_lock_is_gone_afterwards(folder: str) -> None:
    for _ in range(2):
        with hold(folder, QUICK):
            assert fs.exists(fs.join(folder, STATE, NAME))
        assert not fs.exists(fs.join(folder, STATE, NAME))


def test_a_killed_driver_of_this_machine_is_followed_at_once(tmp_path: Path) -> None:
    code = "import os, sys; from pipeline.run_folder.lock import hold\nwith hold(sys.argv[1]): os.kill(os.getpid(), 9)"
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=root, check=False).returncode == -9
    assert (tmp_path / STATE / NAME).exists()
    with hold(str(tmp_path), Timing(stale_s=3600)) as lock:
        assert json.loads((tmp_path / STATE / NAME).read_bytes())["token"] == lock.owner.token


def test_a_silent_driver_of_another_machine_is_followed_after_a_while(folder: str) -> None:
    change_owner(folder)
    with hold(folder, QUICK) as lock:
        lock.check()


def test_a_driver_of_another_machine_that_shows_life_is_not_followed(folder: str) -> None:
    with hold(folder, QUICK) as lock:
        lock.owner = type(lock.owner)(token=lock.owner.token, host="h", machine="elsewhere", pid=1, pid_started="0")
        lock.beat()
        with pytest.raises(FolderInUse, match="process 1 on h"):
            hold(folder, Timing(beat_s=0.1, stale_s=10)).__enter__()


def test_a_driver_that_was_followed_notices(folder: str) -> None:
    with hold(folder, Timing(beat_s=1000)) as lock:
        change_owner(folder)
        lock.beat()
        with pytest.raises(FolderInUse, match="was taken over"):
            lock.check()
    assert fs.exists(fs.join(folder, STATE, NAME))  # the other's, and left to it


def test_a_command_that_was_followed_at_its_work_has_failed_and_was_no_bad_usage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def work() -> int:
        with hold(str(tmp_path), Timing(beat_s=1000)) as lock:
            change_owner(str(tmp_path))
            lock.confirm()
        return 0

    assert run_to_status(work) == 1
    assert "driver.lock was taken over by another driver" in capsys.readouterr().err


def test_a_lock_torn_by_a_kill_is_taken_over(tmp_path: Path) -> None:
    (tmp_path / STATE).mkdir()
    (tmp_path / STATE / NAME).write_bytes(b'{"token": "ab')
    with hold(str(tmp_path), QUICK) as lock:
        assert json.loads((tmp_path / STATE / NAME).read_bytes())["token"] == lock.owner.token


def test_where_two_could_create_the_lock_the_last_word_counts(bucket: str) -> None:
    """As in a store that does not know conditional writes."""
    other = threading.Thread(target=change_owner_once_there_is_one, args=[f"{bucket}/out"])
    other.start()
    with pytest.raises(FolderInUse, match="process 1 on h"):
        hold(f"{bucket}/out", QUICK).__enter__()
    other.join()


def test_before_what_only_one_may_do_the_lock_itself_is_looked_at(folder: str) -> None:
    with hold(folder, Timing(beat_s=1000)) as lock:
        lock.confirm()
        change_owner(folder)
        lock.check()  # knows nothing of it yet
        with pytest.raises(FolderInUse, match="was taken over"):
            lock.confirm()


def test_a_lock_that_is_gone_is_lost_as_whoever_took_it_may_have_ended(folder: str) -> None:
    with hold(folder, Timing(beat_s=1000)) as lock:
        fs.delete(lock.url)
        with pytest.raises(FolderInUse, match="or removed"):
            lock.confirm()
    assert not fs.exists(fs.join(folder, STATE, NAME))


def test_where_the_store_does_not_answer_nothing_is_confirmed(tmp_path: Path) -> None:
    with hold(str(tmp_path), Timing(beat_s=1000)) as lock:
        (tmp_path / STATE / NAME).unlink()
        (tmp_path / STATE / NAME).mkdir()  # reading it is an OSError, as of a store that is away
        with pytest.raises(OSError, match="not a regular file"):
            lock.confirm()
        lock.beat()  # the next one tells
        lock.check()


def test_a_lock_that_cannot_be_looked_at_in_the_end_does_not_undo_what_was_done(tmp_path: Path) -> None:
    with hold(str(tmp_path), Timing(beat_s=1000)):
        (tmp_path / STATE / NAME).unlink()
        (tmp_path / STATE / NAME).mkdir()  # reading it is an OSError, as of a store that is away


@pytest.mark.parametrize(
    "owner",
    [
        pytest.param({"token": "x"}, id="a token alone"),
        pytest.param({"pid": "abc"}, id="no number"),
        pytest.param({"pid": 10**30}, id="a number that no process has"),
        pytest.param({"pid": 0}, id="0"),
        pytest.param({"pid": -1}, id="every process"),
        pytest.param([], id="a list"),
        pytest.param(None, id="null"),
    ],
)
def test_a_lock_of_the_wrong_shape_is_taken_over_once_it_is_silent(tmp_path: Path, owner: object) -> None:
    written = {"machine": this_machine(), **owner} if isinstance(owner, dict) else owner
    (tmp_path / STATE).mkdir()
    (tmp_path / STATE / NAME).write_text(json.dumps(written))
    with hold(str(tmp_path), QUICK) as held:
        held.confirm()
    assert not (tmp_path / STATE / NAME).exists()


def test_of_two_that_take_over_one_is_refused_however_late_it_writes(tmp_path: Path) -> None:
    path = tmp_path / NAME
    path.write_text("dead")
    assert fs.remove_exactly(str(path), b"dead")
    path.write_text("the first")
    assert not fs.remove_exactly(str(path), b"dead")
    assert path.read_text() == "the first"
    assert [one.name for one in tmp_path.iterdir()] == [NAME]


def test_a_worker_writes_only_while_its_own_driver_holds_the_folder(tmp_path: Path) -> None:
    with hold(str(tmp_path)) as lock:
        assert still_holds(lock.url, lock.owner.token)
        assert not still_holds(lock.url, "another's")
    assert not still_holds(lock.url, lock.owner.token)


DEAD = 2**31 - 1  # no process has this id


def test_of_two_that_take_over_at_any_line_one_is_let_in_and_its_lock_is_never_away(tmp_path: Path) -> None:
    def run(number: int) -> Lines:
        folder, let_in, lost = str(tmp_path / str(number)), [], list[str]()
        change_owner(folder, machine=this_machine(), pid=DEAD)
        with ExitStack() as held:

            def take(name: str) -> None:
                with suppress(FolderInUse):
                    lock = held.enter_context(hold(folder))
                    let_in.append(name)
                    lines.after = lambda: None if still_holds(lock.url, lock.owner.token) else lost.append(name)

            lines = Lines((lock_module, fs), number, lambda: take("second"))
            lines.run(lambda: take("first"))
            assert (len(let_in), lost) == (1, [])
        return lines

    assert len(list(each_line(run))) > 30


def test_a_folder_that_is_let_go_of_while_it_is_looked_at_is_free(tmp_path: Path) -> None:
    def run(number: int) -> Lines:
        folder = str(tmp_path / str(number))
        change_owner(folder)
        url = fs.join(folder, STATE, NAME)
        lines = Lines((lock_module,), number, lambda: still_holds(url, "other") and fs.delete(url))

        def take() -> None:
            with hold(folder, Timing(stale_s=0.0)):
                lines.end()

        lines.run(take)
        return lines

    assert len(list(each_line(run))) > 30


def test_a_stop_at_any_line_leaves_no_lock_to_a_process_that_lives_on(tmp_path: Path) -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    def run(number: int) -> Lines:
        folder = str(tmp_path / str(number))
        lines = Lines((lock_module,), number, stop)

        def take() -> None:
            with hold(folder):
                lines.end()

        with suppress(KeyboardInterrupt):
            lines.run(take)
        with hold(folder) as lock:
            lock.confirm()
        return lines

    assert len(list(each_line(run))) > 30


def test_a_beat_that_is_on_its_way_does_not_come_after_the_end(tmp_path: Path) -> None:
    def run(number: int) -> Lines:
        with hold(str(tmp_path / str(number))) as lock:
            ending = threading.Thread(target=lock.release)

            def end() -> None:
                ending.start()
                ending.join(0.05)  # long enough for one that does not wait

            lines = Lines((lock_module,), number, end)
            lines.run(lock.beat)
            if ending.ident is not None:
                ending.join()
                assert not fs.exists(lock.url)
        return lines

    assert len(list(each_line(run))) > 5
