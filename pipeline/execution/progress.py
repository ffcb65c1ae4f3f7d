"""Progress of a running job: answers done and failed, images/s, time left, how well the engines are used, what the job
waits for; shown as a panel on a terminal, as a line in a log."""

import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Protocol, TextIO

from pipeline.execution.flow import Flow, Waiting
from pipeline.execution.work_units import UnitKey
from pipeline.run_folder.events import Events
from pipeline.run_folder.units import Counts
from schemas.engine import EngineStatistics
from schemas.wording import counted


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
    write_s: float = 0.0  # of these, writing the answers
    prepare_s: float = 0.0
    input_share: float = 0.0  # of its preparation: reading and fetching, the rest is work
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


_WINDOW_S = 30.0  # over which what is so now is taken
_EVERY_S = 1.0


@dataclass(slots=True, kw_only=True)
class Recent:
    """Tells what was done in the last half minute."""

    moments: deque[tuple[float, int, EngineStatistics]] = field(default_factory=deque)

    def add(self, now: float, rows: int, engine: EngineStatistics) -> None:
        """Note how much is done by now."""
        self.moments.append((now, rows, engine))
        while len(self.moments) > 2 and self.moments[1][0] <= now - _WINDOW_S:
            self.moments.popleft()

    def is_due(self, now: float) -> bool:
        """Return whether the newest moment is old enough for another."""
        return not self.moments or now - self.moments[-1][0] >= _EVERY_S

    def seconds(self, now: float) -> float:
        """Return the time since the first moment: where nothing comes in any more, all paces fall."""
        return now - self.moments[0][0] if self.moments else 0.0

    def rows_per_s(self, now: float) -> float | None:
        """Return the answers a second; None where nothing came in."""
        rows, seconds = self.moments[-1][1] - self.moments[0][1] if self.moments else 0, self.seconds(now)
        return rows / seconds if rows and seconds else None

    def engine(self) -> EngineStatistics:
        """Return what engines have done meanwhile."""
        return self.moments[-1][2] - self.moments[0][2] if self.moments else EngineStatistics()


class Display(Protocol):
    """Shows a job's progress in a place of its own on a terminal."""

    def update(self, progress: "Progress") -> None: ...

    def close(self) -> None: ...


class Gauges(Protocol):
    """Publishes a job's progress for others to read."""

    def update(self, progress: "Progress") -> None: ...


@dataclass(slots=True, kw_only=True)
class Progress:
    """Counts what units report. Shows a panel on a terminal, else a new line every 30 seconds. Times in seconds."""

    total_rows: int
    answers_each: int = 1  # of a row of the input
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
    recent: Recent = field(default_factory=Recent)
    waiting: Waiting = field(default_factory=Waiting)
    flow: Flow | None = None  # as it was seen last
    columns: Callable[[], int] = field(default_factory=lambda: terminal_columns)  # of the terminal, where it is one
    said: str | None = None  # the last line of a log
    events: Events | None = None
    cells: Sequence[str] = ()  # of a sweep, by shard
    workers: int = 0  # that there should be; 0: nobody has said
    display: Display | None = None
    gauges: Gauges | None = None
    note: str | None = None  # why nothing comes in

    def add(self, report: UnitReport) -> None:
        """Count one more unit and show the line when it is due."""
        now = self.heard_at = self.clock()
        self.note = None
        self.workers = max(self.workers, report.workers)
        self.done += report.counts
        self._note(report, now)
        known = self.engines.get(report.worker)
        if known is None or report.engine.num_rows >= known.num_rows:  # a worker's threads may overtake each other
            self.engines[report.worker] = report.engine
        self.pace.add(now, self.done.rows)
        self.waiting.hear(report.input_share, report.write_s / report.seconds if report.seconds else 0.0)
        if self.first_at is None:
            self.first_at, self.first_rows = now, self.done.rows
        if self.recent.is_due(now):
            self.recent.add(now, self.done.rows, self.engine())
        self._show_if_due(now)

    def expect(self, models: int) -> None:
        """Note how many models on GPUs there should be; none where the CPU generates."""
        self.workers = max(1, models)
        self.waiting.engine = "GPU" if models else "the model"

    def watch(self, flow: Flow) -> None:
        """Take in where units are, whether one has come in or not."""
        self.flow = flow
        if self._all_at_work():  # nothing is lacking any more
            self.note = None
        self.waiting.look(flow)
        if self.display is not None:
            self.display.update(self)
        if self.gauges is not None:
            self.gauges.update(self)

    @contextmanager
    def shown(self, open_display: Callable[["Progress"], Display | None]) -> Iterator[None]:
        """Have it shown in a place of its own while the block runs, where the terminal has one."""
        self.display = open_display(self)
        ended = False
        try:
            yield
            ended = True
        finally:
            display, self.display = self.display, None
            if display is not None:
                display.close()
                if not ended:  # how far it came stays to be read
                    self.show(end="\n")

    def _show_if_due(self, now: float) -> None:
        due = 0.2 if self.out.isatty() else self.every_s
        if self.display is None and (self.shown_at is None or now - self.shown_at >= due):
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
            cell = {"cell": self.cells[report.shard]} if self.cells else {}
            self.events.add("rows_failed", now, **cell, unit=report.unit, errors=report.counts.errors, types=types)

    def say_if_silent(self, note: str) -> None:
        """Write a line of its own where no unit has come in for a while, saying what the job waits for: what `note`
        says, unless all workers are there and have units."""
        now = self.clock()
        if self.heard_at is not None and now - self.heard_at < self.every_s:
            return
        if self.flow is not None and self._all_at_work():
            if self.display is not None:  # shows it anyway
                return
            note = f"{counted(self.flow.at_work, 'unit')} at work"
        if self.display is not None:
            self.note = note
            return
        line = note if not self.done.rows else f"{self.line()}; {note}"
        self.out.write(f"\r\x1b[K{line}\n" if self.out.isatty() else f"{line}\n")
        self.out.flush()

    def _all_at_work(self) -> bool:
        return self.flow is not None and self.flow.at_work > 0 and self.flow.workers >= max(1, self.workers)

    def rows_per_s(self) -> float | None:
        """Return the pace since the first unit was done, None before the second."""
        elapsed = self._now() - (self.first_at or 0.0)
        rows = self.done.rows - self.first_rows
        return rows / elapsed if self.first_at is not None and rows and elapsed > 0 else None

    def images_per_s(self) -> tuple[float | None, float | None]:
        """Return the rows of the input that are answered a second: now, and since the first unit was done."""
        now, mean = self.recent.rows_per_s(self._now()), self.rows_per_s()
        return now and now / self.answers_each, mean and mean / self.answers_each

    def seconds_left(self) -> float | None:
        """Return the time until all is answered at the mean pace; None where nothing is left, or nobody knows."""
        pace, left = self.rows_per_s(), self.total_rows - self.done.rows
        return left / pace if pace and left else None

    def retried(self) -> int:
        """Count the answers that were tried once more under a penalty, and the units that were handed out again."""
        return self.engine().num_retries + (self.flow.again if self.flow else 0)

    def busy(self) -> tuple[float, float] | None:
        """Return the share of time in which the engines work now, and that of their products' own rate which they
        reach; None where that is not measured."""
        for engine in (self.recent.engine(), self.engine()):
            if engine.utilisation:
                return engine.busy_s / (engine.busy_s + engine.waiting_s), engine.utilisation
        return None

    def tokens_per_s(self) -> float | None:
        """Return the tokens of answers that are generated a second now; None where nobody counts them."""
        tokens, seconds = self.recent.engine().num_answer_tokens, self.recent.seconds(self._now())
        return tokens / seconds if tokens and seconds else None

    def _now(self) -> float:
        return self.clock() if self.ended_at is None else self.ended_at

    def engine(self) -> EngineStatistics:
        """Return what all engines have done together, those of dead workers included."""
        return sum(self.engines.values(), EngineStatistics())

    def line(self) -> str:
        """Return what a log has, as `1,024 of 10,000 answers, 3 failed, 14.8 images/s now, 14.2 mean, 0:10:06 left,
        1,452 tokens/s, GPUs 97 % busy at 64 %, waits for GPU`.

        The first share is of the engines' time, rows to answer or not; the second of their products' own rate.
        """
        return ", ".join(self._parts())

    def _parts(self) -> list[str]:
        parts = [f"{self.done.rows:,} of {self.total_rows:,} answers", f"{self.done.errors:,} failed"]
        if retried := self.retried():
            parts.append(f"{retried:,} retried")
        now, mean = self.images_per_s()
        if mean is not None:
            parts.append(f"{now or 0.0:.1f} images/s now, {mean:.1f} mean")
        if (left := self.seconds_left()) is not None:
            parts.append(f"{clock_time(left)} left")
        if tokens := self.tokens_per_s():
            parts.append(f"{tokens:,.0f} tokens/s")
        if busy := self.busy():
            parts.append(f"GPUs {100 * busy[0]:.0f} % busy at {100 * busy[1]:.0f} %")
        if reason := self.waits_for():
            parts.append(f"waits for {reason}")
        return parts

    def waits_for(self) -> str | None:
        """Return what the job waits for, None where it waits for nothing, or nobody knows."""
        return self.waiting.reason if self.ended_at is None and self.done.rows < self.total_rows else None

    def end(self) -> None:
        """Stop the clock and write the last line."""
        self.ended_at = self.clock()
        if self.gauges is not None:
            self.gauges.update(self)
        self.show(end="\n")

    def show(self, end: str = "") -> None:
        """Write the line now: on a terminal over the one before, of which no part may be in another row."""
        if self.out.isatty():
            self.out.write(f"\r\x1b[K{', '.join(fitting(self._parts(), self.columns()))}{end}")
        elif (line := self.line()) != self.said:
            self.out.write(f"{line}\n")
            self.said = line
        self.out.flush()


def clock_time(seconds: float) -> str:
    """Return a time as `hours:minutes:seconds`."""
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


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
