"""Judging: the answers of complete cells against their benchmark, joined by id."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.run_folder.answer_files import LostFile, read_stated
from pipeline.run_folder.run import read_manifest
from pipeline.run_folder.units import to_parquet
from pipeline.storage import filesystem as fs
from pipeline.sweep.cells import Asking, Cell
from pipeline.sweep.inputs import as_written
from schemas.benchmark import Judged, Question
from schemas.errors import Refused
from schemas.sweep import CellName

JUDGED_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("prompt", pa.string(), nullable=False),
        pa.field("answer", pa.string()),  # null exactly when the answer failed
        pa.field("references", pa.list_(pa.string()), nullable=False),
        pa.field("score", pa.float64(), nullable=False),
        pa.field("parsed", pa.string()),  # what was taken for the answer; null where nothing could be
        pa.field("split", pa.string()),
        pa.field("finish_reason", pa.string()),
    ]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """One answer as the run folder has it; `text` None is an answer that failed."""

    text: str | None
    finish_reason: str | None


_Asked: TypeAlias = list[tuple[Given, Judged]]  # the answers to one question, one for each draw


@dataclass(frozen=True, slots=True, kw_only=True)
class Marked:
    """The judged answers of one cell, in the order of their ids, and what a score alone does not show.

    Of a question with several draws each counts for its share.
    """

    judged: tuple[Judged, ...]
    errors: int  # questions of which an answer failed
    cut: float  # answers that ended at their longest length
    unparsable: float  # answers, none that failed, in which no answer was found

    @property
    def num_rows(self) -> int:
        """Return the number of questions, answered or failed."""
        return len(self.judged)


def judge_cells(asking: Asking, cells: Sequence[Cell], folder: str) -> dict[CellName, Marked]:
    """Judge the complete cells of one benchmark and prompt in one pass over its questions, and write what was judged.

    An answer that failed is judged as an empty one, which is wrong. Raises ValueError where the questions are no longer
    those that were answered.
    """
    given = {cell.name: _answers_of(cell.job.output) for cell in cells}
    rows: dict[CellName, list[_Asked]] = {cell.name: [] for cell in cells}
    written: dict[CellName, list[dict[str, object]]] = {cell.name: [] for cell in cells}
    for question in as_written(asking).questions():
        for name, answers in given.items():
            if question.id not in answers:
                raise Refused(f"{asking.data} has changed: no answer of cell {name} is to its question {question.id}")
            draws = answers.pop(question.id)
            judged = [(answer, asking.benchmark.judge(question, answer.text or "")) for answer in draws]
            rows[name].append(judged)
            written[name] += [_row(question, answer, one) for answer, one in judged]
    for name, answers in given.items():
        if answers:
            raise Refused(f"{asking.data} has changed: it has no question {next(iter(answers))}, cell {name} has")
        table = pa.Table.from_pylist(written[name], schema=JUDGED_SCHEMA)
        fs.write_atomic(judged_path(folder, name), to_parquet(table))
    return {name: _marked(some) for name, some in rows.items()}


def judged_path(folder: str, name: CellName) -> str:
    """Return where the judged answers of a cell are."""
    return fs.join(folder, f"{name}.parquet")


def _answers_of(folder: str) -> dict[str, list[Given]]:
    """Return the answers to every question: one, or as many as were drawn."""
    found: dict[str, list[Given]] = {}
    for id, given in _read_answers(folder):
        found.setdefault(id, []).append(given)
    return found


def _mean(judged: Sequence[Judged]) -> Judged:
    """Return the first of several draws with the mean of their scores."""
    counts = zip(*(one.counts for one in judged), strict=True)
    score = sum(one.score for one in judged) / len(judged)
    return replace(judged[0], score=score, counts=tuple(sum(some) / len(judged) for some in counts))


def _read_answers(folder: str) -> Iterator[tuple[str, Given]]:
    manifest = read_manifest(folder)
    assert manifest is not None
    for file in manifest["files"]:
        try:
            data = read_stated(folder, file)
        except LostFile as error:
            raise Refused(f"{fs.join(folder, str(error))}: {_LOST}") from error
        for row in pq.read_table(pa.BufferReader(data), columns=["id", "text", "finish_reason"]).to_pylist():
            yield row["id"], Given(text=row["text"], finish_reason=row["finish_reason"])


_LOST = "put it back as it was, or remove its cell's folder, which is then answered again"


def _row(question: Question, answer: Given, judged: Judged) -> dict[str, object]:
    return {
        "id": question.id,
        "prompt": question.prompt,
        "answer": answer.text,
        "references": list(question.reference.answers),
        "score": judged.score,
        "parsed": judged.parsed,
        "split": judged.split,
        "finish_reason": answer.finish_reason,
    }


def _marked(asked: Sequence[_Asked]) -> Marked:
    return Marked(
        judged=tuple(sorted((_mean([judged for _, judged in draws]) for draws in asked), key=lambda one: one.id)),
        errors=sum(any(answer.text is None for answer, _ in draws) for draws in asked),
        cut=sum(_share(answer.finish_reason == "length" for answer, _ in draws) for draws in asked),
        unparsable=sum(
            _share(answer.text is not None and judged.parsed is None for answer, judged in draws) for draws in asked
        ),
    )


def _share(said: Iterable[bool]) -> float:
    """Return the share of draws of which something is so."""
    draws = list(said)
    return sum(draws) / len(draws)
