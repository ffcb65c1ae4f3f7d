"""Options: what a row asks of its own answer, honoured where a job can, refused by name where it asks another thing."""

import json
from collections.abc import Mapping
from typing import Any

from schemas.errors import RowError
from schemas.job import JobSettings

_LENGTHS = ("max_tokens", "max_completion_tokens")
_OF_SAMPLING = ("top_p", "top_k", "seed")  # which draw nothing at temperature 0
_OTHERS = ("temperature", "stop", "repetition_penalty")


def longest_answer(options: str | None, settings: JobSettings) -> int:
    """Return how many tokens the answer to a row may have; raise RowError for what only another job could do."""
    asked: Mapping[str, Any] = json.loads(options) if options else {}
    for name, value in asked.items():
        if name in _LENGTHS:
            _check_length(name, value, settings.max_new_tokens)
        elif name not in (*_OF_SAMPLING, *_OTHERS):
            raise _refused(f"{name} is {value!r}, which is nothing that this pipeline does: leave it out")
        elif name not in _OF_SAMPLING or settings.temperature > 0:
            _check_same(name, value, settings)
    lengths: list[int] = [asked[name] for name in _LENGTHS if name in asked]
    return min([settings.max_new_tokens, *lengths])


def _check_length(name: str, value: object, most: int) -> None:
    if type(value) is not int or not 1 <= value <= most:
        raise _refused(f"{name} must be a whole number from 1 to --max-new-tokens {most}, got {value!r}")


def _check_same(name: str, value: object, settings: JobSettings) -> None:
    own = getattr(settings, name)
    wanted = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value
    if wanted != own:
        flag = f"--{name.replace('_', '-')}"
        raise _refused(f"{name} is {value!r}, the job's {flag} is {own!r}: rows of one {name} are a job of their own")


def _refused(message: str) -> RowError:
    return RowError("prompt", "UnsupportedOption", message)
