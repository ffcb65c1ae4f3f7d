"""submit: a job on a cluster, from a machine that is none of it.

python -m jobs submit --address http://head:8265 caption --input 's3://b/*.parquet' --output s3://b/out --model M
python -m jobs submit --address http://head:8265 --stop caption ...
"""

import hashlib
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from jobs.config import read_config
from schemas.errors import Refused

JOBS = (
    "caption",
    "ocr",
    "sweep",
    "retry-failed",
    "merge",
    "verify",
    "export",
    "report",
    "plan",
    "check-model",
    "doctor",
)
_PLACES = ("--input", "--output", "--image-root", "--allow-root")  # of files, which are the cluster's own


def submit(
    *job: Annotated[str, Parameter(help="The command to run there, with its flags.", allow_leading_hyphen=True)],
    address: Annotated[
        str, Parameter(help="Where the head's dashboard is, as http://head:8265.", env_var="RAY_ADDRESS")
    ],
    env: Annotated[
        tuple[str, ...],
        Parameter(help="NAME or NAME=VALUE of the job's environment; repeatable.", consume_multiple=False),
    ] = (),
    python: Annotated[str, Parameter(help="The Python on the cluster's machines.")] = "python",
    stop: Annotated[bool, Parameter(help="End the job that this very command has submitted.", negative=())] = False,
    detach: Annotated[bool, Parameter(help="Do not follow its log.", negative=())] = False,
) -> int:
    """Run a command on a Ray cluster: upload this code, follow the log, end with its exit status.

    llava-batch submit --address http://head:8265 caption --input 's3://b/*.parquet' --output s3://b/out --model M
    llava-batch submit --address http://head:8265 --stop caption --input ...

    Flags before the command are submit's own. A lost connection is waited for; Ctrl-C leaves the job at work, and the
    same command follows it again.
    """
    from pipeline.execution.submission import Submission, environment_of, follow, staged, stop_submission

    check_job(job)
    submission = Submission(address=address, id=submission_id(job), python=python)
    if stop:
        return stop_submission(submission)
    with staged(job) as (folder, arguments):
        return follow(submission, folder, shlex.join(arguments), environment_of(env), detach=detach)


def own_and_job(tokens: Sequence[str]) -> tuple[str, ...]:
    """Return the command line with `--` before the job's name: what follows it is the job's, whatever it is called."""
    at = next((place for place, token in enumerate(tokens) if token in JOBS), None)
    if at is None or "--" in tokens[:at]:
        return tuple(tokens)
    return (*tokens[:at], "--", *tokens[at:])


def submission_id(job: Sequence[str]) -> str:
    """Return the name under which the cluster knows this command: the same command is the same job."""
    return f"llava-batch-{hashlib.sha256(shlex.join(job).encode()).hexdigest()[:16]}"


def check_job(job: Sequence[str]) -> None:
    """Raise Refused for no job, and for files that the cluster's machines cannot find under their name."""
    if not job or job[0] not in JOBS:
        raise Refused(f"submit must be given one of {', '.join(JOBS)}, got {job[0] if job else 'nothing'}")
    for flag, place in places_of(job):
        if "://" not in place and not Path(place).is_absolute():
            raise Refused(f"{flag} must be a URL or a whole path on the cluster's machines, got {place}")


def places_of(job: Sequence[str]) -> list[tuple[str, str]]:
    """Return the flags of the command, or the keys of its file, that name files, with what they name."""
    found, flag = [], ""
    for token in job[1:]:
        name, equals, value = token.partition("=")
        if token.startswith("--"):
            flag = name if not equals else ""
            if equals:
                found.append((name, value))
        elif flag:
            found.append((flag, token))
    for config in [Path(value) for name, value in found if name == "--config"]:
        for key, value in read_config(config).settings.items():
            found += [
                (f"--{key.replace('_', '-')}", str(one)) for one in (value if isinstance(value, list) else [value])
            ]
    return [(name, value) for name, value in found if name in _PLACES]
