"""Submission: a command on a cluster through Ray's job server: uploaded once, its log followed, its exit status."""

import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, cast

from schemas.errors import Refused
from schemas.wording import one_line, printable_lines, redacted

_FIRST_S, _LONGEST_S = 1.0, 5.0  # between two looks
_LOG_PACE = 1e6  # characters a second: every look brings the whole log, and a long one is looked at less often
_SAY_AGAIN_S = 30.0
_TRIES = 4  # to read the log of a command that has ended; to submit, where the server says that it cannot
_INTERRUPTED = 130
_NOT_FOUND = (126, 127)  # a shell's status for a program that it cannot run
_PENDING, _STOPPED = "PENDING", "STOPPED"
_OF_RAY = "INFO job_manager.py:"  # what it logs before a job begins
_ENDED = ("SUCCEEDED", "FAILED", _STOPPED)
_AWAY = (OSError, RuntimeError)  # no connection; an answer that says what went wrong there
# A stop in order takes seconds (signals.GRACE_S); Ray 2.60 kills after three unless the job's environment says this.
_GRACE = {"RAY_JOB_STOP_WAIT_TIME_S": "30"}


class Details(Protocol):
    """Ray's record of a submission, as far as it is used."""

    submission_id: str | None
    status: object
    message: str | None
    driver_exit_code: int | None
    metadata: dict[str, str] | None


class Client(Protocol):
    """Ray's job client, as far as it is used."""

    def submit_job(self, **options: object) -> str: ...

    def list_jobs(self) -> "list[Details]": ...

    def get_job_info(self, job_id: str) -> "Details": ...

    def get_job_logs(self, job_id: str) -> str: ...

    def stop_job(self, job_id: str) -> bool: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """Names what travels to the cluster: a folder, its size, and the hash of what is in it besides the code."""

    folder: Path
    num_bytes: int
    files_hash: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """A command of a cluster. Each try of it is a job named after the command, with a number behind: the same command
    is found again, and what a try has logged is its own."""

    address: str
    id: str
    python: str = "python"
    connect: Callable[[str], Client] = field(default_factory=lambda: _connect)
    wait: Callable[[float], None] = time.sleep

    def client(self) -> Client:
        """Return a connection; raise Refused where there is no job server."""
        try:
            return self.connect(self.address)
        except Refused:
            raise
        except (*_AWAY, LookupError, TypeError, ValueError) as error:
            is_another = isinstance(error, LookupError | TypeError | json.JSONDecodeError)
            reason = "what answers there is none" if is_another else one_line(error)
            where = f"--address must be that of a Ray dashboard, as http://head:8265, got {self.address}"
            raise Refused(f"{where}: {reason}") from error


def _connect(address: str) -> Client:
    from pipeline.execution.job_server import connect

    return cast(Client, connect(address))


def follow(
    submission: Submission, upload: Upload, command: str, environment: Mapping[str, str], *, detach: bool
) -> int:
    """Submit the command, unless it is at work already, and follow it to its end; return its exit status."""
    client = submission.client()
    request = {
        "entrypoint": f"exec {submission.python} -m jobs {command}",
        "runtime_env": {
            "working_dir": str(upload.folder),
            "env_vars": {"PYTHONUNBUFFERED": "1", **_GRACE, **environment},
        },
        "metadata": {"files": upload.files_hash},
    }
    try:
        id = _submit(submission, client, request, upload)
    except KeyboardInterrupt:
        _say(f"\ninterrupted while it was submitted as {submission.id}: --stop ends it, if it is at work")
        return _INTERRUPTED
    if id is None:
        return 1
    if detach:
        return 0
    try:
        return _follow(submission, client, id)
    except KeyboardInterrupt:
        _say(f"\ndetached: {id} goes on; the same command follows it again, with --stop it ends")
        return _INTERRUPTED


def stop_submission(submission: Submission) -> int:
    """End the command, in order: what is done stays; return the exit status of this."""
    client = submission.client()
    connection = _Connection(submission)
    asked = False
    while True:
        try:
            found = _latest(client, submission.id)
            if found is None or str(found.status) in _ENDED:
                break
            if not asked:
                asked = client.stop_job(str(found.submission_id))
        except _AWAY as error:
            connection.lost(error)
        else:
            submission.wait(_FIRST_S)
    if not asked:
        _say(f"nothing to stop: this command is not at work at {submission.address}")
        return 1
    _say(f"{submission.id} has stopped; what is done stays")
    return 0


def _latest(client: Client, id: str) -> Details | None:
    """Return the last try of a command, None where there was none."""
    tries = [one for one in client.list_jobs() if _number(one, id) is not None]
    return max(tries, key=lambda one: _number(one, id) or 0, default=None)


def _number(job: Details, id: str) -> int | None:
    name, _, number = (job.submission_id or "").rpartition("-")
    return int(number) if name == id and number.isdecimal() else None


def _submit(submission: Submission, client: Client, request: Mapping[str, object], upload: Upload) -> str | None:
    """Return the id of the command's job: the one at work, or a new one. None, once that is said, where the server
    takes none."""
    connection, sent, refusals = _Connection(submission), "", 0
    while True:
        try:
            found = _latest(client, submission.id)
            if found is not None and (str(found.status) not in _ENDED or found.submission_id == sent):
                return _found(found, sent, upload)
            number = 1 if found is None else 1 + (_number(found, submission.id) or 0)
            sent = f"{submission.id}-{number}"
            client.submit_job(submission_id=sent, **request)
        except OSError as error:  # whether it was taken is seen by the next look
            connection.lost(error)
        except RuntimeError as error:
            refusals += 1
            if refusals == _TRIES:
                _say(f"error: {submission.address} does not take the job: {_shortly(error)}")
                return None
            connection.lost(error)
        else:
            _say(f"submitted to {submission.address} as {sent}, with {upload.num_bytes / 1e6:.1f} MB of code and files")
            return sent


def _found(found: Details, sent: str, upload: Upload) -> str:
    """Return the id of a job that is there already; refuse to follow one that was given other files."""
    id = str(found.submission_id)
    if id == sent:  # by ourselves: its answer was lost
        return id
    if (found.metadata or {}).get("files", upload.files_hash) != upload.files_hash:
        raise Refused(f"{id} is at work with other contents of the files that the command names; --stop ends it")
    _say(f"{id} is at work already")
    return id


def _follow(submission: Submission, client: Client, id: str) -> int:
    log, connection, pause_s, unread = _Log(), _Connection(submission), _FIRST_S, 0
    while True:
        try:
            info = _info(client, id)
        except _AWAY as error:  # it is away; the job goes on
            connection.lost(error)
            continue
        if info is None:
            _say(f"error: {submission.address} knows of no {id} any more, as a head that was started again")
            _say("What is done stays; run the same command again to go on.")
            return 1
        ended = str(info.status) in _ENDED
        try:
            log.show(client.get_job_logs(id), whole=ended)
        except _AWAY as error:
            unread += ended
            if unread < _TRIES:
                connection.lost(error)
                continue
            _say(f"error: the log cannot be read: {_shortly(error)}")
        if ended:
            log.end()
            return _exit_status(info, submission)
        connection.back(info.message if str(info.status) == _PENDING else None, pause_s)
        submission.wait(pause_s + log.shown / _LOG_PACE)
        pause_s = min(_LONGEST_S, pause_s * 1.5)


def _exit_status(info: Details, submission: Submission) -> int:
    """Return the command's own exit status; say what Ray says where it has none."""
    status = info.driver_exit_code
    if status is None or str(info.status) == _STOPPED:
        _say(f"error: {' '.join((info.message or str(info.status)).split())}")
        return _INTERRUPTED if str(info.status) == _STOPPED else 1
    if status in _NOT_FOUND:
        _say(f"error: the head cannot run {submission.python}: --python names that of its environment, as a whole path")
    return 128 - status if status < 0 else status  # a signal's number, as a shell gives it


def _info(client: Client, id: str) -> Details | None:
    """Return what the server knows of a job, None where it knows none."""
    try:
        return client.get_job_info(id)
    except RuntimeError as error:
        if "status code 404" in str(error) or "does not exist" in str(error):
            return None
        raise


class _Connection:
    """Waits while the server is away or the job has not begun, and says so every 30 s."""

    def __init__(self, submission: Submission) -> None:
        self._submission = submission
        self._silent_s = _SAY_AGAIN_S  # since it was last said
        self._pending_s = 0.0

    def lost(self, error: BaseException) -> None:
        """Wait until the next try."""
        if self._silent_s >= _SAY_AGAIN_S:
            self._silent_s = 0.0
            _say(f"no connection to {self._submission.address}, trying again: {_shortly(error)}")
        self._silent_s += _LONGEST_S
        self._submission.wait(_LONGEST_S)

    def back(self, pending: str | None, waits_s: float) -> None:
        """Note that the server has answered, and what it says of a job that has not begun."""
        self._silent_s = _SAY_AGAIN_S
        self._pending_s = 0.0 if pending is None else self._pending_s + waits_s
        if pending is not None and self._pending_s >= _SAY_AGAIN_S:
            self._pending_s = 0.0
            _say(" ".join(pending.split()))


class _Log:
    """Shows what is new in a log: on stderr, and the one line of JSON that a job ends with on stdout."""

    def __init__(self) -> None:
        self.shown = 0
        self._result: str | None = None

    def show(self, log: str, *, whole: bool) -> None:
        """Show the lines that are whole by now, or all that is there where no more will come."""
        new = log[self.shown :] if whole else log[self.shown : log.rfind("\n") + 1]
        self.shown += len(new)
        for line in new.splitlines():
            if _is_result(line):
                self._result = line
            elif _OF_RAY not in line:
                _say(line)

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


def _shortly(error: BaseException) -> str:
    """Return the last line of what went wrong: servers answer with whole tracebacks."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip(" .")]
    return lines[-1] if lines else type(error).__name__


def _say(text: str) -> None:
    sys.stderr.write(printable_lines(redacted(text)) + "\n")
    sys.stderr.flush()


def environment_of(names: Sequence[str]) -> dict[str, str]:
    """Return the environment that NAME and NAME=VALUE ask for; raise Refused for a name that is not set here."""
    environment = {}
    for one in names:
        name, equals, value = one.partition("=")
        if not name or (not equals and name not in os.environ):
            raise Refused(f"--env must be NAME=VALUE, or a NAME that is set here, got {one}")
        environment[name] = value if equals else os.environ[name]
    return environment
