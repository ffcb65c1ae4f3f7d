"""Errors: all that can go wrong, and who can mend it.

Refused             settings, input or checkpoint that a job cannot start with: exit status 2, one line
RowError            one row that cannot be answered: written as an Answer with its Failure
`- carries Failure  stage, type, message: the three error columns of an answer

Any other exception is a bug of ours, whatever it inherits from.
"""

from dataclasses import dataclass
from typing import Literal, get_args

from schemas.wording import shortened

Stage = Literal["read", "fetch", "decode", "prompt", "generate"]
STAGES: tuple[Stage, ...] = get_args(Stage)
MOST = 2_000  # characters of a message


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why a row has no text: the stage that found it, a short CamelCase type, a message that says what to do."""

    stage: Stage
    type: str
    message: str

    def __post_init__(self) -> None:
        if self.stage not in STAGES:
            raise ValueError(f"stage must be one of {', '.join(STAGES)}, got {self.stage!r}")
        object.__setattr__(self, "message", shortened(self.message, MOST))  # no secret, no megabyte


class Refused(ValueError):
    """The user's settings, input or checkpoint cannot be used: one line that names the thing, the rule and the value.

    Only this is bad usage. Libraries raise ValueErrors too (JSONDecodeError, ArrowInvalid, ValidationError): those are
    faults that nobody foresaw.
    """


class RowError(Exception):
    """One row cannot be answered; the others can."""

    def __init__(self, stage: Stage, type: str, message: str) -> None:
        self.failure = Failure(stage=stage, type=type, message=message)
        super().__init__(f"{stage}: {type}: {self.failure.message}")
