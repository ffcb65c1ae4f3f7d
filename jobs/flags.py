"""Flags: under which heading of --help each setting stands, and what is done to a setting before a job has it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Optional, TypeAlias, TypeVar

from cyclopts import Group, Parameter, Token
from pydantic import BaseModel, Field, ValidationError, create_model

from pipeline.storage.local_files import read_text
from schemas.errors import Refused
from schemas.job import KINDS, JobSettings, in_utf_8
from schemas.setting_kinds import HEADINGS
from schemas.wording import describe_settings, holds_null

Settings = TypeVar("Settings", bound=JobSettings)
Record = TypeVar("Record", bound=BaseModel)

# Settings that a retry may have instead of its run's: none that says which rows there are or what model answers.
RETRIED = tuple(name for name, kind in KINDS.items() if kind.on_retry)
_ALIASES = {"capacity": "--max-model-len"}  # names that people know from vLLM
_GROUPS = {heading: Group.create_ordered(heading) for heading in ("Rows", *HEADINGS, "This call", "Other")}


def under(heading: str) -> Group:
    """Return the heading as cyclopts has it."""
    return _GROUPS[heading]


def with_headings(model: type[Settings]) -> type[Settings]:
    """Return the model with each field's heading in its annotation, where cyclopts looks for it."""
    fields: dict[str, Any] = {
        name: (Annotated[field.annotation, _parameter(name, field.default)], field)
        for name, field in model.model_fields.items()
    }
    return create_model(model.__name__, __base__=model, **fields)


def with_options(model: type[Record], names: tuple[str, ...]) -> type[Record]:
    """Return the model with these settings of a job as well, null where they are not given."""
    fields: dict[str, Any] = {}
    for name in names:
        field = JobSettings.model_fields[name]
        optional: Any = Optional[field.annotation]  # noqa: UP045  a value, not a type that is written down
        fields[name] = (Annotated[optional, _parameter(name, None)], Field(None, description=field.description))
    return create_model(model.__name__, __base__=model, **fields)


def _folder(type_: object, tokens: Sequence[Token]) -> str:
    """Return a folder as a job spells it, bytes that are no text as a URI: all commands name it alike."""
    folder = tokens[0].value
    if holds_null(folder):
        raise Refused(f"must not hold a null character, got {folder!r}")
    return in_utf_8(folder)


def _file(type_: object, tokens: Sequence[Token]) -> Path:
    file = tokens[0].value
    if not file.strip():
        raise Refused(f"must be the name of a file, got {file!r}: is a variable of the shell unset?")
    if "\0" in file:
        raise Refused(f"must not hold a null character, got {file!r}")
    return Path(file)


# What they refuse is said behind the name of the flag or argument.
Folder: TypeAlias = Annotated[str, Parameter(converter=_folder)]  # of a run, or what is made of one
File: TypeAlias = Annotated[Path, Parameter(converter=_file)]  # of this machine


def _parameter(name: str, default: object) -> Parameter:
    shown = default not in (None, ()) and default is not False
    return Parameter(group=under(KINDS[name].heading), show_default=shown, alias=_ALIASES.get(name))


def checked(settings: Settings, model: type[Settings]) -> Settings:
    """Return the settings as a record of `model`, the prompts that stand in files read from there."""
    prompts = tuple(map(read_prompt, settings.prompt))
    try:
        return model.model_validate({**settings.model_dump(exclude_unset=True), "prompt": prompts})
    except ValidationError as error:  # of texts that were not there before
        raise Refused("\n".join(describe_settings(error))) from error


def settings_from(values: Mapping[str, object]) -> JobSettings:
    """Return a job's settings of these values; raise Refused in the words of the flags."""
    try:
        return JobSettings.model_validate(values)
    except ValidationError as error:
        lines = describe_settings(error, spell=lambda name: "--" + name.split(".")[0].replace("_", "-"))
        raise Refused("\n".join(lines)) from error


def read_prompt(prompt: str) -> str:
    """Return `@file.txt` and `name=@file.txt` with the file's text for its name; `@@` is a plain @."""
    name, mark, rest = prompt.partition("@")
    if not mark or (name and not (name.endswith("=") and name[:-1].replace("-", "").replace("_", "").isalnum())):
        return prompt
    if rest.startswith("@"):
        return name + rest
    try:
        text = read_text(rest)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise Refused(f"--prompt {prompt}: the file cannot be read: {reason} (@@ begins a text with an @)") from error
    return name + text.rstrip("\n")
