"""Submission: a command on a cluster through Ray's job server: its code uploaded, its log followed, its exit status."""

import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, cast

from schemas.errors import Refused
from schemas.wording import one_line, printable_lines

CODE = ("jobs", "pipeline", "schemas", "llava_batch", "pyproject.toml", "constraints.txt")
DEMO = "demo/model"  # 16 MB that only --model demo needs
_ROOT = Path(__file__).parents[2]
_FIRST_S, _LONGEST_S = 1.0, 5.0  # between two looks
_SAY_AGAIN_S = 30.0
_INTERRUPTED = 130
_STOPPED = "STOPPED"
_ENDED = ("SUCCEEDED", "FAILED", _STOPPED)


class Details(Protocol):
    """Ray's record of a submission, as far as it is used."""

    status: object
    message: str | None
    driver_exit_code: int | None


class Client(Protocol):
    """Ray's job client, as far as it is used."""

    def submit_job(self, **options: object) -> str: ...

    def get_job_info(self, job_id: str) -> "Details": ...

    def get_job_logs(self, job_id: str) -> str: ...

    def stop_job(self, job_id: str) -> bool: ...

    def delete_job(self, job_id: str) -> bool: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """A command of a cluster: the same command has the same id, so that it is submitted once and found again."""

    address: str
    id: str
    python: str = "python"
    connect: Callable[[str], Client] = field(default_factory=lambda: _connect)
    wait: Callable[[float], None] = time.sleep

    def client(self) -> Client:
        """Return a connection; raise Refused where there is no job server."""
        try:
            return self.connect(self.address)
        except (ConnectionError, OSError, RuntimeError, ValueError) as error:
            raise Refused(
                f"--address must be that of a Ray dashboard, as http://head:8265, got {self.address}: {one_line(error)}"
            ) from error


def _connect(address: str) -> Client:
    from ray.job_submission import JobSubmissionClient

    return cast(Client, JobSubmissionClient(address))


def follow(submission: Submission, folder: Path, command: str, environment: dict[str, str], *, detach: bool) -> int:
    """Submit the command, unless it is at work already, and follow it to its end; return its exit status."""
    client = submission.client()
    info = _info(client, submission.id)
    if info is not None and str(info.status) not in _ENDED:
        _say(f"{submission.id} is at work already")
    else:
        if info is not None:
            client.delete_job(submission.id)
        client.submit_job(
            entrypoint=f"{submission.python} -m jobs {command}",
            submission_id=submission.id,
            runtime_env={"working_dir": str(folder), "env_vars": {"PYTHONUNBUFFERED": "1", **environment}},
        )
        _say(f"submitted to {submission.address} as {submission.id}")
    if detach:
        return 0
    try:
        return _follow(submission, client)
    except KeyboardInterrupt:
        _say(f"\ndetached: {submission.id} goes on; the same command follows it again, with --stop it ends")
        return _INTERRUPTED


def stop_submission(submission: Submission) -> int:
    """End the command, in order: what is done stays; return the exit status of this."""
    client = submission.client()
    info = _info(client, submission.id)
    if info is None or str(info.status) in _ENDED:
        _say(f"nothing to stop: this command is not at work at {submission.address}")
        return 1
    client.stop_job(submission.id)
    while (info := _info(client, submission.id)) is not None and str(info.status) not in _ENDED:
        submission.wait(_FIRST_S)
    _say(f"{submission.id} has stopped; what is done stays")
    return 0


def _follow(submission: Submission, client: Client) -> int:
    log, pause_s, away_s = _Log(), _FIRST_S, 0.0
    while True:
        try:
            info = _info(client, submission.id)
            log.show(client.get_job_logs(submission.id) if info is not None else "")
        except (ConnectionError, OSError, RuntimeError) as error:  # it is away; the job goes on
            if away_s % _SAY_AGAIN_S < _LONGEST_S:
                _say(f"no connection to {submission.address}, trying again: {one_line(error)}")
            away_s += _LONGEST_S
            submission.wait(_LONGEST_S)
            continue
        if info is None:
            _say(f"error: {submission.address} knows of no {submission.id} any more, as a head that was started again")
            _say("What is done stays; run the same command again to go on.")
            return 1
        if str(info.status) in _ENDED:
            log.end()
            return _exit_status(info)
        away_s = 0.0
        submission.wait(pause_s)
        pause_s = min(_LONGEST_S, pause_s * 1.5)


def _exit_status(info: Details) -> int:
    """Return the command's own exit status; say what Ray says where it has none."""
    if info.driver_exit_code is not None and str(info.status) != _STOPPED:
        return int(info.driver_exit_code)
    _say(f"error: {' '.join((info.message or str(info.status)).split())}")
    return _INTERRUPTED if str(info.status) == _STOPPED else 1


def _info(client: Client, id: str) -> Details | None:
    """Return what the server knows of a submission, None where it knows none."""
    try:
        return client.get_job_info(id)
    except RuntimeError as error:
        if "404" in str(error) or "does not exist" in str(error):
            return None
        raise


class _Log:
    """Shows what is new in a log: on stderr, and the one line of JSON that a job ends with on stdout."""

    def __init__(self) -> None:
        self._shown = 0
        self._result: str | None = None

    def show(self, log: str) -> None:
        """Show the lines that are whole by now."""
        new = log[self._shown : log.rfind("\n") + 1]
        self._shown += len(new)
        for line in new.splitlines():
            if _is_result(line):
                self._result = line
            else:
                _say(printable_lines(line))

    def end(self) -> None:
        """Show the result."""
        if self._result is not None:
            sys.stdout.write(self._result + "\n")
            sys.stdout.flush()


def _is_result(line: str) -> bool:
    if not line.startswith("{"):
        return False
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


@contextmanager
def staged(job: Sequence[str], root: Path = _ROOT) -> Iterator[tuple[Path, list[str]]]:
    """Yield a folder with what the command needs of this machine, and the command as it is there.

    That is the code, the bundled model where it may be asked for, and the files that flags name: --config FILE, @FILE.
    """
    with tempfile.TemporaryDirectory(prefix="llava-batch-") as name:
        folder = Path(name)
        for one in (*CODE, *((DEMO,) if _may_need_demo(job) else ())):
            _copy(root / one, folder / one)
        yield folder, _with_files(job, folder)


def _may_need_demo(job: Sequence[str]) -> bool:
    models = [
        after.partition("=")[2] or value for after, value in zip(job, (*job[1:], ""), strict=True) if _is_model(after)
    ]
    return not models or "demo" in models


def _is_model(token: str) -> bool:
    return token.partition("=")[0] == "--model"


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
    elif source.exists():
        shutil.copy(source, target)


def _with_files(job: Sequence[str], folder: Path) -> list[str]:
    arguments, before = [], ""
    for number, token in enumerate(job):
        mark = "@" if token.startswith("@") else ""
        name = token.removeprefix("@") if mark or before == "--config" else ""
        flag, equals, value = token.partition("=")
        if equals and flag == "--config":
            mark, name = f"{flag}=", value
        if name and Path(name).is_file():
            there = f"submitted/{number}-{Path(name).name}"
            _copy(Path(name), folder / there)
            token = mark + there
        arguments.append(token)
        before = token
    return arguments


def environment_of(names: Sequence[str]) -> dict[str, str]:
    """Return the environment that NAME and NAME=VALUE ask for; raise Refused for a name that is not set here."""
    environment = {}
    for one in names:
        name, equals, value = one.partition("=")
        if not equals and name not in os.environ:
            raise Refused(f"--env must be NAME=VALUE, or a NAME that is set here, got {one}")
        environment[name] = value if equals else os.environ[name]
    return environment
