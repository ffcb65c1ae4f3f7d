"""submit: what travels to a cluster, and what comes back, by a job server that stands in for Ray's."""

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from jobs.__main__ import main
from jobs.submit import check_job, own_and_job, submission_id
from pipeline.execution.submission import Submission, environment_of, follow, staged, stop_submission
from schemas.errors import Refused

JOB = ("caption", "--input", "s3://b/in", "--output", "s3://b/out", "--model", "m")


@dataclass
class Details:
    status: str
    message: str | None = None
    driver_exit_code: int | None = None


@dataclass
class Server:
    """Goes through states, one a look; an exception is a connection that is lost."""

    states: list[Details | Exception] = field(default_factory=list)
    logs: list[str] = field(default_factory=lambda: [""])
    submitted: list[dict[str, object]] = field(default_factory=list)
    deleted: int = 0
    stopped: int = 0

    def submit_job(self, **options: object) -> str:
        self.submitted.append(options)
        return "id"

    def get_job_info(self, job_id: str) -> Details:
        state = self.states.pop(0) if len(self.states) > 1 else self.states[0]
        if isinstance(state, Exception):
            raise state
        return state

    def get_job_logs(self, job_id: str) -> str:
        return self.logs.pop(0) if len(self.logs) > 1 else self.logs[0]

    def stop_job(self, job_id: str) -> bool:
        self.stopped += 1
        return True

    def delete_job(self, job_id: str) -> bool:
        self.deleted += 1
        return True


NOBODY = RuntimeError("Request failed with status code 404: Job id does not exist.")


def submission(server: Server, waits: list[float] | None = None) -> Submission:
    wait = (waits if waits is not None else []).append
    return Submission(address="http://head:8265", id="id", connect=lambda _: server, wait=wait)


def followed(server: Server) -> int:
    return follow(submission(server), Path("code"), "caption --limit 3", {"A": "b"}, detach=False)


def test_a_job_is_submitted_followed_and_ends_with_its_own_status(capsys: pytest.CaptureFixture[str]) -> None:
    line = '{"rows": 3}'
    server = Server([NOBODY, Details("RUNNING"), Details("FAILED", driver_exit_code=2)])
    server.logs = ["3 answers to give\nloading", f"3 answers to give\nloading the model\n{line}\n"]
    assert followed(server) == 2
    (sent,) = server.submitted
    assert sent["entrypoint"] == "python -m jobs caption --limit 3"
    assert sent["runtime_env"] == {"working_dir": "code", "env_vars": {"PYTHONUNBUFFERED": "1", "A": "b"}}
    out, err = capsys.readouterr()
    assert out == f"{line}\n"
    assert err.splitlines()[1:] == ["3 answers to give", "loading the model"]


@pytest.mark.parametrize(
    ("end", "status"),
    [
        pytest.param(Details("SUCCEEDED", driver_exit_code=0), 0, id="done"),
        pytest.param(Details("FAILED", driver_exit_code=1), 1, id="failed"),
        pytest.param(Details("FAILED", message="the working directory\ncannot be unpacked"), 1, id="never began"),
        pytest.param(Details("STOPPED", driver_exit_code=-15), 130, id="stopped"),
    ],
)
def test_the_exit_status_is_that_of_the_job(end: Details, status: int) -> None:
    assert followed(Server([NOBODY, end])) == status


def test_a_command_that_is_at_work_is_followed_and_not_submitted_again() -> None:
    server = Server([Details("RUNNING"), Details("SUCCEEDED", driver_exit_code=0)])
    assert followed(server) == 0
    assert (server.submitted, server.deleted) == ([], 0)


def test_a_command_that_has_ended_is_submitted_anew() -> None:
    server = Server([Details("FAILED", driver_exit_code=1), Details("SUCCEEDED", driver_exit_code=0)])
    assert followed(server) == 0
    assert (len(server.submitted), server.deleted) == (1, 1)


def test_a_connection_that_is_lost_is_waited_for_and_said_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    away: list[Details | Exception] = [ConnectionError("no route to host")] * 13
    server = Server([NOBODY, Details("RUNNING"), *away, Details("SUCCEEDED", driver_exit_code=0)])
    server.logs = ["one\n", "one\ntwo\n"]
    assert followed(server) == 0
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if not line.startswith("no connection")][1:] == ["one", "two"]
    assert len([line for line in lines if "no route to host" in line]) == 3  # of 65 s


def test_a_head_that_was_started_again_knows_the_job_no_more(capsys: pytest.CaptureFixture[str]) -> None:
    assert followed(Server([NOBODY, Details("RUNNING"), NOBODY])) == 1
    assert "What is done stays; run the same command again to go on." in capsys.readouterr().err


def test_a_job_is_ended_by_the_command_that_began_it() -> None:
    server = Server([Details("RUNNING"), Details("RUNNING"), Details("STOPPED")])
    assert stop_submission(submission(server)) == 0
    assert server.stopped == 1
    assert stop_submission(submission(Server([NOBODY]))) == 1


def test_a_server_that_is_not_there_is_refused_by_name() -> None:
    def connect(_: str) -> Server:
        raise ConnectionError("Failed to connect to Ray at address: http://nowhere:1.")

    with pytest.raises(Refused, match="--address must be that of a Ray dashboard.*got http://nowhere:1: Failed"):
        stop_submission(Submission(address="http://nowhere:1", id="id", connect=connect))


def test_what_travels_is_small_and_has_the_files_that_flags_name(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("limit: 3")
    (tmp_path / "q.txt").write_text("What is this?")
    named = ("--config", str(tmp_path / "job.yaml"), "--prompt", f"@{tmp_path / 'q.txt'}", "--prompt", "@home?")
    with staged((*JOB, *named)) as (folder, arguments):
        files = [path for path in folder.rglob("*") if path.is_file()]
        assert sum(path.stat().st_size for path in files) < 4e6
        assert not [path for path in files if path.parts[-2] in ("__pycache__", ".venv", "tests", "model")]
        config, prompt = arguments[8], arguments[10].removeprefix("@")
        assert (folder / config).read_text() == "limit: 3"
        assert (folder / prompt).read_text() == "What is this?"
        assert arguments[:7] == list(JOB)
        assert arguments[-1] == "@home?"
    assert not folder.exists()


@pytest.mark.parametrize(("model", "there"), [("m", False), ("demo", True), (None, True)])
def test_the_bundled_model_travels_where_it_may_be_asked(model: str | None, there: bool) -> None:
    flags = ("--model", model) if model else ()
    with staged(("caption", *flags)) as (folder, _):
        assert (folder / "demo" / "model" / "config.json").exists() == there


def test_flags_before_the_job_are_submits_own_and_those_behind_it_the_jobs() -> None:
    tokens = ("submit", "--address", "a", "--stop", "caption", "--stop", "END", "--address", "b")
    assert own_and_job(tokens) == ("submit", "--address", "a", "--stop", "--", *tokens[4:])


@pytest.mark.parametrize(
    ("job", "message"),
    [
        pytest.param((), "must be given one of caption.*got nothing", id="none"),
        pytest.param(("captions",), "got captions", id="no job"),
        pytest.param(
            ("caption", "--output", "out/"), "--output must be a URL or a whole path.*got out/", id="relative"
        ),
        pytest.param(("caption", "--input=in"), "--input must be a URL or a whole path.*got in", id="with ="),
        pytest.param(("caption", "--input", "/a", "b"), "--input must be.*got b", id="the second"),
    ],
)
def test_what_the_cluster_could_not_find_is_refused_here(job: tuple[str, ...], message: str) -> None:
    with pytest.raises(Refused, match=message):
        check_job(job)


def test_places_in_a_file_of_settings_are_looked_at_too(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("input: [/data, photos]")
    with pytest.raises(Refused, match="--input must be a URL or a whole path.*got photos"):
        check_job(("caption", "--config", str(tmp_path / "job.yaml")))


def test_the_same_command_is_the_same_job() -> None:
    assert submission_id(JOB) == submission_id(JOB) != submission_id((*JOB, "--limit", "3"))


def test_the_environment_is_given_by_name_or_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN_OF_A_TEST", "t")
    assert environment_of(["TOKEN_OF_A_TEST", "A=b=c"]) == {"TOKEN_OF_A_TEST": "t", "A": "b=c"}
    with pytest.raises(Refused, match="--env must be NAME=VALUE, or a NAME that is set here, got NOT_SET_HERE"):
        environment_of(["NOT_SET_HERE"])


@pytest.mark.parametrize("before", [(), ("--stop",)])
def test_the_command_line_refuses_before_anything_is_sent(before, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(["submit", "--address", "http://127.0.0.1:1", *before, "caption", "--output", "out", "--stop", "x"]) == 2
    )
    assert capsys.readouterr().err == (
        "error: --output must be a URL or a whole path on the cluster's machines, got out\n"
    )
