"""One line about a running job: rows done, failed, images/s, time left, how well the engines are used."""

import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TextIO

from pipeline.execution.work_units import UnitKey
from pipeline.run_folder.events import Events
from pipeline.run_folder.units import Counts
from schemas.engine import EngineStatistics


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitReport:
    """A worker's report of a unit that is through, without rows where its shard was stopped before; and all that the
    worker's engine has done so far."""

    counts: Counts
    worker: str  # one life of it: an actor that is restarted is another
    engine: EngineStatistics = field(default_factory=EngineStatistics)
    shard: int = 0  # the run that the unit is of, where an engine answers for several
    unit: int = 0
    seconds: float = 0.0  # in the generate stage, beside other units
    prepare_s: float = 0.0
    machine: str = ""  # where it was written
    workers: int = 0  # that were ready together so far

    @property
    def key(self) -> UnitKey:
        """Return the unit's key."""
        return UnitKey(self.shard, self.unit)

    def beside(self, workers: int) -> "UnitReport":
        """Return the report with the number of workers."""
        return replace(self, workers=workers)


_MOST_POINTS = 512


@dataclass(slots=True, kw_only=True)
class Pace:
    """Answers done by seconds since the first unit, at most so many points of a run of any length."""

    points: list[tuple[float, int]] = field(default_factory=list)
    last: tuple[float, int] | None = None
    began: float = 0.0
    step: int = 1  # how many units are one point
    units: int = 0

    def add(self, now: float, rows: int) -> None:
        """Note that so many answers are done in all."""
        if not self.units:
            self.began = now
        self.last = (round(now - self.began, 3), rows)
        if self.units % self.step == 0:
            self.points.append(self.last)
        self.units += 1
        if len(self.points) > _MOST_POINTS:
            self.points, self.step = self.points[::2], 2 * self.step

    def described(self) -> list[list[float]]:
        """Return the points as the manifest has them, the last one included."""
        last = [self.last] if self.last is not None and self.points[-1] != self.last else []
        return [list(point) for point in (*self.points, *last)]


@dataclass(slots=True, kw_only=True)
class Progress:
    """Writes the line over the last one of a terminal, elsewhere as a new line every 30 seconds. Times in seconds."""

    total_rows: int
    done: Counts = field(default_factory=Counts)
    engines: dict[str, EngineStatistics] = field(default_factory=dict)  # the most that each worker has said
    out: TextIO = field(default_factory=lambda: sys.stderr)
    every_s: float = 30.0
    clock: Callable[[], float] = time.monotonic  # its zero is anywhere: only differences mean something
    first_rows: int = 0  # of the first unit: before it the engine was loading
    first_at: float | None = None
    shown_at: float | None = None
    heard_at: float | None = None  # when a unit came in last, or the job began
    ended_at: float | None = None
    pace: Pace = field(default_factory=Pace)
    columns: Callable[[], int] = field(default_factory=lambda: terminal_columns)  # of the terminal, where it is one
    said: str | None = None  # the last line of a log
    events: Events | None = None
    workers: int = 0  # that there should be; 0: nobody has said

    def add(self, report: UnitReport) -> None:
        """Count one more unit and show the line when it is due."""
        now = self.heard_at = self.clock()
        self.workers = max(self.workers, report.workers)
        self.done += report.counts
        self._note(report, now)
        known = self.engines.get(report.worker)
        if known is None or report.engine.num_rows >= known.num_rows:  # a worker's threads may overtake each other
            self.engines[report.worker] = report.engine
        self.pace.add(now, self.done.rows)
        if self.first_at is None:
            self.first_at, self.first_rows = now, self.done.rows
        due = 0.2 if self.out.isatty() else self.every_s
        if self.shown_at is None or now - self.shown_at >= due:
            self.show()
            self.shown_at = now

    def _note(self, report: UnitReport, now: float) -> None:
        """Note rows that failed, and a worker that came for one that was lost."""
        if self.events is None:
            return
        if report.worker not in self.engines and 0 < self.workers <= len(self.engines):
            self.events.add("worker_lost", now, workers=self.workers, replaced=len(self.engines) + 1 - self.workers)
        if report.counts.errors:
            types = {f"{one.stage}/{one.type}": one.rows for one in report.counts.by_type}
            self.events.add("rows_failed", now, unit=report.unit, errors=report.counts.errors, types=types)

    def say_if_silent(self, note: str) -> None:
        """Write a line of its own where no unit has come in for a while, saying what the job waits for."""
        now = self.clock()
        if self.heard_at is not None and now - self.heard_at < self.every_s:
            return
        line = note if not self.done.rows else f"{self.line()}; {note}"
        self.out.write(f"\r\x1b[K{line}\n" if self.out.isatty() else f"{line}\n")
        self.out.flush()

    def rows_per_s(self) -> float | None:
        """Return the pace since the first unit was done, None before the second."""
        elapsed = (self.ended_at or self.clock()) - (self.first_at or 0.0)
        rows = self.done.rows - self.first_rows
        return rows / elapsed if self.first_at is not None and rows and elapsed > 0 else None

    def engine(self) -> EngineStatistics:
        """Return what all engines have done together, those of dead workers included."""
        return sum(self.engines.values(), EngineStatistics())

    def line(self) -> str:
        """Return what is shown, as `1,024 of 10,000 answers, 3 failed, 14.8 a second, 0:10:06 left, GPUs 97 % busy at
        64 %`.

        The first share is of the engines' time, rows to answer or not; the second of their products' own rate.
        """
        return ", ".join(self._parts())

    def _parts(self) -> list[str]:
        pace = self.rows_per_s()
        parts = [f"{self.done.rows:,} of {self.total_rows:,} answers", f"{self.done.errors:,} failed"]
        if pace:
            left = round((self.total_rows - self.done.rows) / pace)
            parts += [f"{pace:.1f} a second", f"{left // 3600}:{left // 60 % 60:02d}:{left % 60:02d} left"]
        engine = self.engine()
        if engine.utilisation:
            busy = engine.busy_s / (engine.busy_s + engine.waiting_s)
            parts.append(f"GPUs {100 * busy:.0f} % busy at {100 * engine.utilisation:.0f} %")
        return parts

    def end(self) -> None:
        """Stop the clock and write the last line."""
        self.ended_at = self.clock()
        self.show(end="\n")

    def show(self, end: str = "") -> None:
        """Write the line now: on a terminal over the one before, of which no part may be in another row."""
        if self.out.isatty():
            self.out.write(f"\r\x1b[K{', '.join(fitting(self._parts(), self.columns()))}{end}")
        elif (line := self.line()) != self.said:
            self.out.write(f"{line}\n")
            self.said = line
        self.out.flush()


def fitting(parts: Sequence[str], columns: int) -> Sequence[str]:
    """Return as many of the first parts as fit in a line of so many columns, one at least."""
    while len(parts) > 1 and len(", ".join(parts)) >= columns:
        parts = parts[:-1]
    return parts


def terminal_columns() -> int:
    """Return the columns of the terminal that stderr is, 80 where it does not say."""
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or 80
    except (OSError, ValueError):  # ValueError: closed, or none of the system's
        return 80


def describe_engine(engine: EngineStatistics) -> dict[str, float]:
    """Return counts and shares as the manifest has them."""
    shares = {name: getattr(engine, name) for name in ("prefill_padding", "tile_padding", "slot_use", "utilisation")}
    return {name: round(value, 4) for name, value in {**asdict(engine), **shares}.items()}
