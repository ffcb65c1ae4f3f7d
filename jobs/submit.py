"""submit: a job on a cluster, from a machine that is none of it.

python -m jobs submit --address http://head:8265 caption --input 's3://b/*.parquet' --output s3://b/out --model M
python -m jobs submit --address http://head:8265 --stop caption ...
"""

import hashlib
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from pydantic import BaseModel

from jobs.config import read_config
from jobs.flags import read_prompt
from jobs.sweep import read_settings
from schemas.errors import Refused
from schemas.job import TEMPLATE_SUFFIXES
from schemas.sweep import SweepSettings
from schemas.wording import did_you_mean

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
_WITH_MODEL = frozenset({"caption", "ocr", "sweep", "retry-failed", "plan", "check-model", "doctor"})
# Parameters of these commands that name what is on the cluster's machines, or in a store.
_PLACES = frozenset({"input", "output", "image_root", "allow_root", "out", "dest", "shards", "compare", "bundle"})
_PAGE = "to"  # of a report; an export's is a form
_MODELS = frozenset({"model", "adapter", "data"})  # a hub's id, or a folder there
_FILES = frozenset({"chat_template", "json_schema", "openings"})  # of this machine: they travel


def submit(
    *job: Annotated[str, Parameter(help="The command to run there, with its flags.", allow_leading_hyphen=True)],
    address: Annotated[
        str,
        Parameter(
            help="Where the head's dashboard is, as http://head:8265.",
            env_var=["RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"],
        ),
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
    from jobs.__main__ import bind, file_in  # which imports this
    from jobs.upload import staged
    from pipeline.execution.submission import Submission, environment_of, follow, stop_submission

    check_job(job)
    if not python.strip():
        raise Refused(f"--python must not be empty, got {python!r}: is a variable of the shell unset?")
    submission = Submission(address=address, id=submission_id(job), python=python)
    if stop:
        return stop_submission(submission)
    given = settings_in(job[0], bind(job))
    check_places(job[0], given)
    check_files(given)
    environment = environment_of(env)
    with staged(job, files_in(file_in(job)), demo=may_need_demo(job[0], given)) as (upload, arguments):
        return follow(submission, upload, shlex.join(arguments), environment, detach=detach)


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
    """Raise Refused for what is no job."""
    if job and job[0] not in JOBS and job[0].startswith("-"):
        near = did_you_mean(job[0], ("--address", "--env", "--python", "--stop", "--detach"))
        raise Refused(f"{job[0]} is no flag of submit, and those of the job stand behind its name{near}")
    if not job or job[0] not in JOBS:
        raise Refused(f"submit must be given one of {', '.join(JOBS)}, got {job[0] if job else 'nothing'}")


def settings_in(job: str, arguments: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the names and texts of all that a command was given, in its flags and its file."""
    given: Any = arguments
    if job == "sweep":
        sweep = read_settings(arguments["config"], _flags_of(arguments))
        given = {"output": sweep.output, "of": list(_dicts_of(sweep))}
    return list(_texts(given))


def _flags_of(arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in arguments.items() if name == "output" and value is not None}


def _dicts_of(sweep: SweepSettings) -> Iterator[dict[str, Any]]:
    yield sweep.job
    yield from sweep.models.values()
    yield from sweep.settings.values()
    for choice in sweep.benchmarks.values():
        yield {"data": choice.data, **choice.job}


def _texts(given: object, name: str = "") -> Iterator[tuple[str, str]]:
    """Yield each text in models, mappings and lists with the name of the setting that it is in."""
    if isinstance(given, BaseModel):
        given = {key: getattr(given, key) for key in given.model_fields_set}
    if isinstance(given, Mapping):
        for key, value in given.items():
            yield from _texts(value, name if name == "prompt" else str(key))  # whose keys are names of prompts
    elif isinstance(given, list | tuple):
        for value in given:
            yield from _texts(value, name)
    elif isinstance(given, str | Path):
        yield name, str(given)


def check_places(job: str, given: Sequence[tuple[str, str]]) -> None:
    """Raise Refused for what the cluster's machines cannot find under its name."""
    for name, place in given:
        is_place = name in _PLACES or (job == "report" and name == _PAGE)
        if "://" in place or Path(place).is_absolute():
            continue
        if is_place:
            raise Refused(f"{_spelled(name)} must be a URL or a whole path on the cluster's machines, got {place}")
        if name in _MODELS and (place.startswith((".", "~")) or Path(place).exists()):
            raise Refused(f"{_spelled(name)} must be a hub's id or a whole path on the cluster's machines, got {place}")


def may_need_demo(job: str, given: Sequence[tuple[str, str]]) -> bool:
    """Return whether the bundled model may be asked for: where no other is named, which a retry's run has done."""
    models = [text for name, text in given if name == "model"]
    return "demo" in models or (not models and job in _WITH_MODEL)


def check_files(given: Sequence[tuple[str, str]]) -> None:
    """Raise Refused for a file of a prompt, template or list that is not here, unless it may be the cluster's own, and
    for a --notify that is no URL."""
    from jobs.upload import is_file
    from pipeline.notify import check_url

    for name, text in given:
        if name == "notify":
            check_url(text)
        if name == "prompt" and not Path(text.partition("@")[2]).is_absolute():
            read_prompt(text)
        named = name == "openings" or (name == "chat_template" and text.endswith(TEMPLATE_SUFFIXES))
        if named and not Path(text).is_absolute() and not is_file(text):
            raise Refused(f"{_spelled(name)} {text}: there is no such file here, which would go along")


def files_in(config: Path | None) -> list[str]:
    """Return the relative names of what files a file of settings names: there they are found under the same."""
    from jobs.upload import is_file

    files = []
    for name, text in _texts(read_config(config).settings) if config else ():
        is_own = name.replace("-", "_") in _FILES
        file = text.partition("@")[2] if name == "prompt" else text if is_own else ""
        if file and not Path(file).is_absolute() and is_file(file):
            files.append(file)
    return files


def _spelled(name: str) -> str:
    """Return a flag as it is typed, and an argument without a name as help has it."""
    if name in ("out", "dest", "shards"):
        return name.upper()
    return "data" if name == "data" else f"--{name.replace('_', '-')}"
