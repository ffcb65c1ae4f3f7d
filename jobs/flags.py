"""Flags: under which heading of --help each setting stands, and what is done to a setting before a job has it."""

from pathlib import Path
from typing import Annotated, Any, Optional, TypeVar

from cyclopts import Group, Parameter
from pydantic import BaseModel, Field, ValidationError, create_model

from schemas.errors import Refused
from schemas.job import JobSettings
from schemas.wording import describe_settings

Settings = TypeVar("Settings", bound=JobSettings)
Record = TypeVar("Record", bound=BaseModel)

# Heading -> settings, in the order of --help. What is in none of them comes last.
_INPUT = ("input", "limit", "image_column", "id_column", "prompt_column", "messages_column", "reference_column", "keep")
_IMAGES = ("strips", "pdf_dpi", "max_image_bytes", "max_image_pixels", "max_image_aspect", "row_seconds")
_READING = ("allow_root",)
_LENGTH = ("max_new_tokens", "min_new_tokens", "stop", "cut_repetition", "retry_penalty")
_DRAWING = ("temperature", "top_p", "top_k", "repetition_penalty", "seed")
_PLACES = ("gpus", "gpus_per_model", "preprocess_workers", "fetch_threads", "wait_for_cluster")
_RAY = ("dashboard", "worker_logs")
_SIZES = ("batch_size", "slots", "capacity", "unit_rows")
HEADINGS = {
    "Input": (*_INPUT, *_READING, *_IMAGES),
    "Output": ("output", "max_error_rate"),
    "Question": ("prompt", "system", "chat_template"),
    "Model": ("model", "revision", "adapter", "dtype", "quantize", "attention"),
    "Answer": (*_LENGTH, *_DRAWING),
    "Machines": (*_PLACES, *_RAY, *_SIZES),
}
# Settings that a retry may have in place of its run's: none that says which rows there are or what model answers.
RETRIED = (*_IMAGES, "max_error_rate", *_LENGTH, *_DRAWING, *_PLACES, *_RAY, "batch_size", "slots", "capacity")
_GROUPS = {heading: Group.create_ordered(heading) for heading in ("Rows", *HEADINGS, "This call", "Other")}
_HEADING_OF = {name: heading for heading, names in HEADINGS.items() for name in names}


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


def _parameter(name: str, default: object) -> Parameter:
    heading = _HEADING_OF.get(name, "Other")
    return Parameter(group=under(heading), show_default=default not in (None, ()) and default is not False)


def settled(settings: Settings, model: type[Settings]) -> Settings:
    """Return the settings as a record of `model`, the prompts that stand in files read from there."""
    prompts = tuple(map(read_prompt, settings.prompt))
    try:
        return model.model_validate({**settings.model_dump(exclude_unset=True), "prompt": prompts})
    except ValidationError as error:  # of texts that were not there before
        raise Refused("\n".join(describe_settings(error))) from error


def read_prompt(prompt: str) -> str:
    """Return `@file.txt` and `name=@file.txt` with the file's text for its name; `@@` is a plain @."""
    name, mark, rest = prompt.partition("@")
    if not mark or (name and not (name.endswith("=") and name[:-1].replace("-", "").replace("_", "").isalnum())):
        return prompt
    if rest.startswith("@"):
        return name + rest
    try:
        text = Path(rest).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise Refused(f"--prompt {prompt}: the file cannot be read: {reason} (@@ begins a text with an @)") from error
    return name + text.rstrip("\n")
