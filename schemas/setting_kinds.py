"""Setting kinds: what each setting of a job decides, marked once, at its field. Lists of settings are made of these.

temperature: Annotated[float, Kind("Answer", "sampling", on_retry=True)] = Field(0.0, ge=0)
"""

from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Literal, TypeAlias, get_args

from pydantic import BaseModel

Heading: TypeAlias = Literal[  # in the order of --help
    "Input", "Images of the web", "Output", "Question", "Model", "Answer", "Machines"
]
Decides: TypeAlias = Literal[
    "rows",  # which rows there are, and what their answers are called
    "requests",  # what is made of a row: its images and its prompt
    "sampling",  # how tokens are drawn
    "engine",  # what the model is loaded by, and answers with
    "machines",  # how wide an engine runs, and on what: answers are the same
    "run",  # where a run is written, and when it stops: answers are the same
]
HEADINGS: tuple[Heading, ...] = get_args(Heading)


@dataclass(frozen=True, slots=True)
class Kind:
    """Kind of a setting: what it decides, and who may have another than the run."""

    heading: Heading
    decides: Decides
    _: KW_ONLY
    fixed: bool = False  # says which row an answer stands for: never another within a folder
    of_sweep: bool = False  # follows from the sweep that a job is part of
    on_retry: bool = False  # a retry may have another: neither other rows nor another model

    @property
    def shapes_answers(self) -> bool:
        """Return whether another value may give another answer, so that a resume compares it."""
        return self.decides not in ("machines", "run")


def kinds_of(model: type[BaseModel]) -> dict[str, Kind]:
    """Return the kind of every setting; raise TypeError naming one that has no mark, or several."""
    kinds = {}
    for name, field in model.model_fields.items():
        marks = [mark for mark in field.metadata if isinstance(mark, Kind)]
        if len(marks) != 1:
            raise TypeError(f"{model.__name__}.{name} must have one Kind in its annotation, it has {len(marks)}")
        kinds[name] = marks[0]
    return kinds


def names_where(kinds: Mapping[str, Kind], chosen: Callable[[Kind], bool]) -> frozenset[str]:
    """Return the settings whose kind is chosen."""
    return frozenset(name for name, kind in kinds.items() if chosen(kind))
