"""Submission: a command submitted, followed, found again and stopped, by a job server that stands in for Ray's."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import pytest

from pipeline.execution.submission import Submission, Upload, environment_of, follow, stop_submission
from schemas.errors import Refused

Item = TypeVar("Item")
UPLOAD = Upload(folder=Path("code"), num_bytes=1_500_000, files_hash="1")
LOST = ConnectionError("no route to host")
UNWELL = RuntimeError("Request failed with status code 500: Traceback\n  File x\nOSError: disk full\n.")
GONE = RuntimeError("Request failed with status code 404: Job id does not exist.")


@dataclass(frozen=True)
class Details:
    status: str
    message: str | None = None
    driver_exit_code: int | None = None
    submission_id: str = "id-1"
    metadata: dict[str, str] | None = None


RUNNING = Details("RUNNING")
DONE = Details("SUCCEEDED", driver_exit_code=0)


@dataclass
class Server:
    """Has jobs, and goes through the states of the one that is followed, one a look; an exception is what a question
    ends with."""

    states: list[Details | Exception] = field(default_factory=lambda: [DONE])
    logs: list[str | Exception] = field(default_factory=lambda: [""])
    jobs: list[Details] = field(default_factory=list)
    takes: list[Exception | None] = field(default_factory=lambda: [None])  # of submissions
    takes_unheard: bool = False
    submitted: list[dict[str, object]] = field(default_factory=list)
    stopped: list[str] = field(default_factory=list)

    def submit_job(self, **options: object) -> str:
        error = following(self.takes)
        if error is None or self.takes_unheard:
            self.submitted.append(options)
            self.jobs.append(Details("RUNNING", submission_id=str(options["submission_id"])))
        return answered("id", error)

    def list_jobs(self) -> list[Details]:
        return self.jobs

    def get_job_info(self, job_id: str) -> Details:
        state = following(self.states)
        if isinstance(state, Exception):
            raise state
        return state

    def get_job_logs(self, job_id: str) -> str:
        log = following(self.logs)
        return answered("", log) if isinstance(log, Exception) else log

    def stop_job(self, job_id: str) -> bool:
        self.stopped.append(job_id)
        self.jobs = [Details("STOPPED")]
        return True


def following(items: list[Item]) -> Item:
    return items.pop(0) if len(items) > 1 else items[0]


def answered(value: str, error: Exception | None) -> str:
    if error is not None:
        raise error
    return value


def submission(server: Server, waits: list[float] | None = None) -> Submission:
    wait = ([] if waits is None else waits).append
    return Submission(address="http://head:8265", id="id", connect=lambda _: server, wait=wait)


def followed(server: Server, waits: list[float] | None = None, *, detach: bool = False) -> int:
    return follow(submission(server, waits), UPLOAD, "caption --limit 3", {"A": "b"}, detach=detach)


def test_a_job_is_submitted_followed_and_ends_with_its_own_status(capsys: pytest.CaptureFixture[str]) -> None:
    line = '{"rows": 3}'
    server = Server([RUNNING, Details("FAILED", driver_exit_code=2)])
    server.logs = ["3 answers to give\nloading", f"3 answers to give\nloading the model\n{line}"]
    assert followed(server) == 2
    (sent,) = server.submitted
    assert sent["submission_id"] == "id-1"
    assert sent["entrypoint"] == "exec python -m jobs caption --limit 3"
    environment = {"PYTHONUNBUFFERED": "1", "RAY_JOB_STOP_WAIT_TIME_S": "30", "A": "b"}
    assert sent["runtime_env"] == {"working_dir": "code", "env_vars": environment}
    out, err = capsys.readouterr()
    assert out == f"{line}\n"
    assert err.splitlines() == [
        "submitted to http://head:8265 as id-1, with 1.5 MB of code and files",
        "3 answers to give",
        "loading the model",
    ]


@pytest.mark.parametrize(
    ("end", "status"),
    [
        pytest.param(DONE, 0, id="done"),
        pytest.param(Details("FAILED", driver_exit_code=1), 1, id="failed"),
        pytest.param(Details("FAILED", driver_exit_code=-9), 137, id="killed"),
        pytest.param(Details("FAILED", message="the working directory\ncannot be unpacked"), 1, id="never began"),
        pytest.param(Details("STOPPED", driver_exit_code=-15), 130, id="stopped"),
    ],
)
def test_the_exit_status_is_that_of_the_job(end: Details, status: int) -> None:
    assert followed(Server([end])) == status


def test_a_head_without_the_python_is_told_how_to_name_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert followed(Server([Details("FAILED", driver_exit_code=127)])) == 127
    assert "the head cannot run python: --python names" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("jobs", "submitted"),
    [
        pytest.param([RUNNING], [], id="at work"),
        pytest.param([DONE, Details("PENDING", submission_id="id-2")], [], id="at work again"),
        pytest.param([DONE], ["id-2"], id="ended"),
        pytest.param([Details("FAILED", submission_id=f"id-{n}") for n in (1, 10, 9)], ["id-11"], id="often"),
        pytest.param([Details("RUNNING", submission_id="other-id-1")], ["id-1"], id="another's"),
        pytest.param([Details("RUNNING", submission_id="id")], ["id-1"], id="another tool's"),
    ],
)
def test_a_command_is_submitted_unless_it_is_at_work(jobs: Sequence[Details], submitted: Sequence[str]) -> None:
    server = Server(jobs=list(jobs))
    assert followed(server) == 0
    assert [one["submission_id"] for one in server.submitted] == list(submitted)


def test_a_command_that_was_given_other_files_is_not_taken_for_this_one() -> None:
    with pytest.raises(Refused, match="id-1 is at work with other contents of the files"):
        followed(Server(jobs=[Details("RUNNING", metadata={"files": "2"})]))


@pytest.mark.parametrize("unheard", [False, True])
def test_a_connection_that_is_lost_while_it_submits_costs_nothing(unheard: bool) -> None:
    server = Server(takes=[LOST, LOST, None], takes_unheard=unheard)
    assert followed(server) == 0
    assert [one["submission_id"] for one in server.submitted] == ["id-1"]


def test_a_server_that_takes_no_job_is_asked_a_few_times(capsys: pytest.CaptureFixture[str]) -> None:
    server = Server(takes=[UNWELL])
    assert followed(server) == 1
    assert capsys.readouterr().err.splitlines()[-1] == (
        "error: http://head:8265 does not take the job: OSError: disk full"
    )
    assert followed(Server(takes=[UNWELL, UNWELL, None])) == 0


def test_a_connection_that_is_lost_is_waited_for_and_said_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    server = Server([RUNNING, *[LOST] * 13, DONE])
    server.logs = ["one\n", "one\ntwo\n"]
    assert followed(server) == 0
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if not line.startswith("no connection")][1:] == ["one", "two"]
    assert len([line for line in lines if "no route to host" in line]) == 3  # of 65 s


def test_a_log_that_cannot_be_read_hides_no_end(capsys: pytest.CaptureFixture[str]) -> None:
    assert followed(Server([RUNNING, Details("FAILED", driver_exit_code=1)], logs=[UNWELL])) == 1
    assert "error: the log cannot be read: OSError: disk full" in capsys.readouterr().err


def test_a_job_can_be_left_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert followed(Server([RUNNING]), detach=True) == 0
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_long_log_is_looked_at_less_often() -> None:
    waits: list[float] = []
    assert followed(Server([RUNNING, DONE], logs=["a line\n" * 1_000_000]), waits) == 0
    assert waits == [8.0]


def test_a_job_that_has_not_begun_says_so_every_half_minute(capsys: pytest.CaptureFixture[str]) -> None:
    assert followed(Server([*[Details("PENDING", message="waiting for\nresources")] * 16, DONE])) == 0
    assert capsys.readouterr().err.splitlines()[1:] == ["waiting for resources"] * 2  # of 65 s


def test_a_head_that_was_started_again_knows_the_job_no_more(capsys: pytest.CaptureFixture[str]) -> None:
    assert followed(Server([RUNNING, GONE])) == 1
    assert "What is done stays; run the same command again to go on." in capsys.readouterr().err


def test_a_job_is_ended_by_the_command_that_began_it() -> None:
    server = Server(jobs=[DONE, Details("RUNNING", submission_id="id-2")])
    assert stop_submission(submission(server)) == 0
    assert server.stopped == ["id-2"]
    assert stop_submission(submission(Server())) == 1
    assert stop_submission(submission(Server(jobs=[DONE]))) == 1


@pytest.mark.parametrize("error", [LOST, KeyError("ray_version"), TypeError("a list"), RuntimeError("404")])
def test_a_server_that_is_not_there_is_refused_by_name(error: Exception) -> None:
    def connect(_: str) -> Server:
        raise error

    with pytest.raises(Refused, match="--address must be that of a Ray dashboard.*got http://nowhere:1: "):
        stop_submission(Submission(address="http://nowhere:1", id="id", connect=connect))


def test_the_environment_is_given_by_name_or_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN_OF_A_TEST", "t")
    assert environment_of(["TOKEN_OF_A_TEST", "A=b=c"]) == {"TOKEN_OF_A_TEST": "t", "A": "b=c"}
    for wrong in ("NOT_SET_HERE", "=b", ""):
        with pytest.raises(Refused, match=f"--env must be NAME=VALUE, or a NAME that is set here, got {wrong}"):
            environment_of([wrong])
