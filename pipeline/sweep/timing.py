"""Timing: how long the engines worked for each cell, where units of several are answered at once."""

import json
import time
from collections import Counter
from dataclasses import asdict, dataclass

from pydantic import TypeAdapter

from pipeline.execution.progress import UnitReport
from pipeline.run_folder.run import read_record
from pipeline.storage import filesystem as fs


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """Rows answered for a cell, and its share of the seconds in which rows of any cell were being answered."""

    rows: int = 0
    seconds: float = 0.0

    def __add__(self, other: "Effort") -> "Effort":
        return Effort(rows=self.rows + other.rows, seconds=self.seconds + other.seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A unit that was being answered, from when to when."""

    cell: str
    rows: int
    start: float
    end: float


def share_time(spans: list[Span]) -> dict[str, Effort]:
    """Return the effort for each cell: a moment belongs to the units at work in it, by their rows."""
    edges = sorted([(span.start, 1, index) for index, span in enumerate(spans)] + _ends(spans))
    at_work: Counter[str] = Counter()
    efforts: dict[str, Effort] = {}
    before = 0.0
    for moment, begins, index in edges:
        total = at_work.total()
        for cell, rows in at_work.items():
            if rows:
                efforts[cell] = efforts.get(cell, Effort()) + Effort(seconds=(moment - before) * rows / total)
        before = moment
        at_work[spans[index].cell] += spans[index].rows if begins else -spans[index].rows
    for span in spans:
        efforts[span.cell] = efforts.get(span.cell, Effort()) + Effort(rows=span.rows)
    return efforts


class Efforts:
    """The efforts of a call, kept beside those of the calls before."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._earlier = read_efforts(folder)
        self._spans: list[Span] = []

    def add(self, cell: str, report: UnitReport) -> float:
        """Count a unit that is through; return the seconds since the one before, or for the first its own."""
        now = time.monotonic()
        since = now - self._spans[-1].end if self._spans else report.seconds
        self._spans.append(Span(cell=cell, rows=report.counts.rows, start=now - report.seconds, end=now))
        return since

    def write(self) -> None:
        """Write them."""
        efforts = dict(self._earlier)
        for cell, effort in share_time(self._spans).items():
            efforts[cell] = efforts.get(cell, Effort()) + effort
        text = json.dumps({cell: asdict(effort) for cell, effort in sorted(efforts.items())}, indent=2)
        fs.write_atomic(_path(self._folder), text.encode())


def read_efforts(folder: str) -> dict[str, Effort]:
    """Return the efforts of all calls so far, by cell."""
    return read_record(_path(folder), TypeAdapter(dict[str, Effort]), _ADVICE) or {}


_ADVICE = "put it back as it was, or remove it: it only says how fast the calls before were"


def _ends(spans: list[Span]) -> list[tuple[float, int, int]]:
    return [(span.end, 0, index) for index, span in enumerate(spans)]


def _path(folder: str) -> str:
    return fs.join(folder, "timings.json")
