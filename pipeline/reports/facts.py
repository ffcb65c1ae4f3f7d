"""Facts: what a report says of a run in numbers, and which answers it shows; answers stream by, counts are kept."""

import heapq
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.exports.rows import Run

EXAMPLES = 3  # of each type of error
CONFIDENCE_BINS = 20
_MOST_TOKENS = 1 << 20
_COLUMNS = ["id", "status", "finish_reason", "mean_logprob", "num_prompt_tokens", "num_generated_tokens"]
_COLUMNS += ["error_stage", "error_type", "error_message"]
_BLOCK = 8  # answers of a unit that are shown together: images of a unit are read together
EVENLY, UNSURE, LONGEST, CUT, FAILED = "evenly", "least confident", "longest", "cut", "failed"
WRONG = "wrong"

Counts = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """Mark of an answer by its benchmark: 1 is right, 0 is wrong."""

    score: float
    references: tuple[str, ...]

    @property
    def is_right(self) -> bool:
        """Return whether nothing is missing."""
        return self.score >= 1

    @property
    def name(self) -> str:
        """Return the mark in a word."""
        return "right" if self.is_right else "wrong" if self.score <= 0 else "partly right"


Marks = Mapping[str, Mark]  # by id


@dataclass(slots=True, kw_only=True)
class Facts:
    """Counts over all answers of a run."""

    ends: Counter[str] = field(default_factory=Counter)
    errors: Counter[tuple[str, str]] = field(default_factory=Counter)
    examples: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    prompt_tokens: Counts = field(default_factory=lambda: np.zeros(0, np.int64))  # answers by their number
    drawn_tokens: Counts = field(default_factory=lambda: np.zeros(0, np.int64))
    confidence: Counts = field(default_factory=lambda: np.zeros(CONFIDENCE_BINS, np.int64))
    interest: dict[int, str] = field(default_factory=dict)  # positions of answers to show, and why


def read_facts(run: Run, most: int, marks: Marks | None = None) -> Facts:
    """Return what all answers come to, and at most about `most` / 2 of them to show for what they are.

    `marks` says which are right, by id.
    """
    facts = Facts()
    share = max(1, min(most // 8, run.manifest["rows"] // 10))
    longest, unsure = _Top(share), _Top(share)
    cut, failed, wrong = (_Thinned(max(1, most // 8)) for _ in range(3))
    start = 0
    for table in run.batches(columns=_COLUMNS):
        _count(facts, table)
        ok = _is(table["status"], "ok")
        drawn = _numbers(table["num_generated_tokens"], -np.inf)
        longest.add(drawn, ok, start)
        unsure.add(-_numbers(table["mean_logprob"], np.inf), ok, start)
        cut.add(
            np.flatnonzero(_is(table["finish_reason"], "length") | _is(table["finish_reason"], "repetition")), start
        )
        failed.add(np.flatnonzero(~ok), start)
        if marks is not None:
            wrong.add(np.flatnonzero([not marks[id].is_right for id in table["id"].to_pylist()]), start)
        start += table.num_rows
    for why, picked in ((WRONG, wrong), (LONGEST, longest), (UNSURE, unsure), (CUT, cut), (FAILED, failed)):
        facts.interest |= dict.fromkeys(picked.positions(), why)
    return facts


def choose(run: Run, facts: Facts, most: int, unit_answers: int) -> dict[int, str]:
    """Return the positions of the answers to show, each with why; all of them where there are no more than `most`."""
    total = int(run.manifest["rows"])
    if total <= most:
        return {position: facts.interest.get(position, EVENLY) for position in range(total)}
    chosen = dict.fromkeys(_evenly(total, most - len(facts.interest), unit_answers), EVENLY)
    return dict(sorted({**chosen, **facts.interest}.items()))


def _evenly(total: int, wanted: int, unit_answers: int) -> Iterator[int]:
    """Yield positions from the first to the last: a few answers of each of some units at even distances."""
    units = -(-total // unit_answers)
    block = min(_BLOCK, unit_answers)
    for unit in np.unique(np.linspace(0, units - 1, max(1, wanted // block)).astype(int)).tolist():
        first = unit * unit_answers
        size = min(unit_answers, total - first)
        yield from (first + index for index in np.unique(np.linspace(0, size - 1, block).astype(int)).tolist())


def _count(facts: Facts, table: pa.Table) -> None:
    facts.ends.update(end for end in table["finish_reason"].to_pylist() if end is not None)
    facts.prompt_tokens = _added(facts.prompt_tokens, table["num_prompt_tokens"])
    facts.drawn_tokens = _added(facts.drawn_tokens, table["num_generated_tokens"])
    sure = np.exp(_numbers(table["mean_logprob"].drop_null(), 0.0))
    bins = np.clip((sure * CONFIDENCE_BINS).astype(int), 0, CONFIDENCE_BINS - 1)
    facts.confidence += np.bincount(bins, minlength=CONFIDENCE_BINS)
    failed = table.filter(pa.array(_is(table["status"], "error")))
    for row in failed.select(["id", "error_stage", "error_type", "error_message"]).to_pylist():
        _count_error(facts, row)


def _count_error(facts: Facts, row: dict[str, Any]) -> None:
    kind = (row["error_stage"], row["error_type"])
    facts.errors[kind] += 1
    if facts.errors[kind] <= EXAMPLES:
        facts.examples.setdefault(kind, []).append(f"{row['id']}: {row['error_message']}")


def _added(counts: Counts, column: pa.ChunkedArray) -> Counts:
    values = np.clip(_numbers(column.drop_null(), 0).astype(np.int64), 0, _MOST_TOKENS)
    new = np.bincount(values, minlength=len(counts))
    new[: len(counts)] += counts
    return new


def _numbers(column: pa.ChunkedArray, nothing: float) -> npt.NDArray[np.float64]:
    found = column.cast(pa.float64()).fill_null(nothing).to_numpy()
    return np.asarray(np.nan_to_num(found, nan=nothing, posinf=np.inf, neginf=-np.inf), np.float64)


def _is(column: pa.ChunkedArray, value: str) -> npt.NDArray[np.bool_]:
    return np.array([one == value for one in column.to_pylist()], np.bool_)


class _Top:
    """The positions of the largest values of all that were added."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._heap: list[tuple[float, int]] = []  # the smallest first; of equal ones the later

    def add(self, values: npt.NDArray[np.float64], among: npt.NDArray[np.bool_], start: int) -> None:
        picked = np.flatnonzero(among & np.isfinite(values))
        for index in picked[np.argsort(-values[picked], kind="stable")][: self._most].tolist():
            entry = (float(values[index]), -(start + index))
            if len(self._heap) < self._most:
                heapq.heappush(self._heap, entry)
            elif entry > self._heap[0]:
                heapq.heapreplace(self._heap, entry)

    def positions(self) -> list[int]:
        return [-position for _, position in self._heap]


class _Thinned:
    """Positions at even distances of all that were added, between half of `most` and `most` of them."""

    def __init__(self, most: int) -> None:
        self._most, self._step, self._seen = most, 1, 0
        self._kept: list[int] = []

    def add(self, picked: npt.NDArray[np.int64], start: int) -> None:
        for index in picked.tolist():
            if self._seen % self._step == 0:
                self._kept.append(start + index)
            self._seen += 1
            if len(self._kept) > self._most:
                self._kept, self._step = self._kept[::2], 2 * self._step

    def positions(self) -> list[int]:
        return self._kept
