"""Shards: the answers of a run, some units together, with the images that they are about where these are wanted."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipeline.exports.images import Pictures, UnitRows, answers_by_unit
from pipeline.exports.rows import Choice, Run
from schemas.errors import Refused, RowError
from schemas.request import Request
from schemas.wording import printable

SHARD_ROWS = 1_024  # answers of a shard before they are chosen


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """Chosen answers of consecutive units; there is at least one."""

    number: int
    units: tuple[UnitRows, ...]

    @property
    def answers(self) -> pa.Table:
        """Return them in one table."""
        return pa.concat_tables([unit.answers for unit in self.units])


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One chosen answer with the first image of its row, None where images are not wanted or there is none."""

    answer: dict[str, Any]
    image: bytes | None


def shards_of(run: Run, choice: Choice, pictures: Pictures | None) -> Iterator[Shard]:
    """Yield the chosen answers in shards, numbered without a gap; the same run gives the same shards."""
    prompts = len(run.prompt_ids)  # answers of one row stay together
    unit_answers = pictures.unit_rows * pictures.num_prompts if pictures else max(1, SHARD_ROWS // prompts) * prompts
    waiting: list[UnitRows] = []
    number = rows = 0
    for unit in answers_by_unit(run, unit_answers):
        rows += unit.answers.num_rows
        chosen = UnitRows(unit=unit.unit, answers=_with_places(unit.answers, choice))
        waiting += [chosen] if chosen.answers.num_rows else []
        if rows >= SHARD_ROWS and waiting:
            yield Shard(number=number, units=tuple(waiting))
            waiting, number, rows = [], number + 1, 0
    if waiting:
        yield Shard(number=number, units=tuple(waiting))


def examples_of(unit: UnitRows, pictures: Pictures | None) -> Iterator[Example]:
    """Yield the chosen answers of a unit, each with its row's image; raises Refused where that is gone."""
    requests = pictures.requests(unit.unit) if pictures else []
    for answer in unit.answers.to_pylist():
        index = answer.pop(INDEX)
        if pictures is None:
            yield Example(answer=answer, image=None)
            continue
        request = requests[index // pictures.num_prompts]
        if request.id != str(answer["id"]):
            raise Refused(f"the input must have the rows of the run in its order, {printable(request.id)} is another")
        yield Example(answer=answer, image=_image_of(pictures, request, answer))


INDEX = "answer:index"  # of an answer in its unit


def _with_places(answers: pa.Table, choice: Choice) -> pa.Table:
    return choice.of(answers.append_column(INDEX, pa.array(range(answers.num_rows), pa.int32())))


def _image_of(pictures: Pictures, request: Request, answer: dict[str, Any]) -> bytes | None:
    try:
        images = pictures.encoded(request)
    except RowError as error:
        if answer["status"] == "error":
            return None
        raise Refused(f"the image of {printable(str(answer['id']))} cannot be had any more: {error}") from error
    return images[0] if images else None
