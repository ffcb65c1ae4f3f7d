"""What can go wrong with one row.

RowError            raised in preprocess/, caught once in stages.py, written as an Answer with its Failure
`- carries Failure  stage, type, message: the three error columns of an answer

A bad setting is a ValueError before anything starts; anything else is a bug and ends the run.
"""

from dataclasses import dataclass
from typing import Literal, get_args

Stage = Literal["read", "fetch", "decode", "prompt", "generate"]
STAGES: tuple[Stage, ...] = get_args(Stage)


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why a row has no text: the stage that found it, a short CamelCase type, a message that says what to do."""

    stage: Stage
    type: str
    message: str

    def __post_init__(self) -> None:
        if self.stage not in STAGES:
            raise ValueError(f"stage must be one of {', '.join(STAGES)}, got {self.stage!r}")


class RowError(Exception):
    """One row cannot be answered; the others can."""

    def __init__(self, stage: Stage, type: str, message: str) -> None:
        super().__init__(f"{stage}: {type}: {message}")
        self.failure = Failure(stage=stage, type=type, message=message)
