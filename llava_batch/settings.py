"""Settings of the Python API: those of a job, by the names of its flags, refused as the command refuses them."""

from typing import TYPE_CHECKING, get_origin

from pydantic import ValidationError

from schemas.errors import Refused
from schemas.job import JobSettings, name_prompt
from schemas.wording import describe_settings

_NOT_GIVEN = "not given"


class Settings(JobSettings):
    """Settings of a run, of a model or of a stage: what has a flag has a field of the same name.

    One text may stand for a list of it, and prompts may be a mapping of names to texts. Only a run needs `input` and
    `output`. Raises Refused, a ValueError, for what the command line refuses.
    """

    input: tuple[str, ...] = (_NOT_GIVEN,)
    output: str = _NOT_GIVEN

    if not TYPE_CHECKING:  # the fields above are its signature

        def __init__(self, **values: object) -> None:
            try:
                super().__init__(**{name: _listed(name, value) for name, value in values.items()})
            except ValidationError as error:
                known = JobSettings.model_fields
                raise Refused("\n".join(describe_settings(error, of="llava_batch.Settings", known=known))) from error


def settings_of(settings: Settings | str) -> Settings:
    """Return the settings of a model's name, which may stand for them."""
    return Settings(model=settings) if isinstance(settings, str) else settings


def check_given(settings: Settings) -> None:
    """Raise Refused where a run lacks its input or output."""
    for name in ("input", "output"):
        if name not in settings.model_fields_set:
            raise Refused(f"{name} is required: a run reads its rows from it")


def _listed(name: str, value: object) -> object:
    if name == "prompt" and isinstance(value, dict):
        return [name_prompt(key, text) for key, text in value.items()]
    field = JobSettings.model_fields.get(name)
    is_list = field is not None and get_origin(field.annotation) is tuple
    return (value,) if is_list and isinstance(value, str) else value
