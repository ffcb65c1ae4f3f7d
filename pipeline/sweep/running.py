"""Running: the cells of one engine answered together; one that cannot be is given up and stops none of the others."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

from pipeline.execution.executor import (
    ErrorBudgetSpent,
    Loaders,
    check_budget,
    in_rounds,
    progress_of,
    record_precision,
    say,
    shown,
    unless_broken,
)
from pipeline.execution.placement import Load, Placement
from pipeline.execution.progress import UnitReport
from pipeline.execution.ray_cluster import plan_placement, said_while_waiting
from pipeline.execution.ray_data import run_units
from pipeline.execution.ray_errors import EngineNotLoaded, RunFailed
from pipeline.execution.work_units import STOPPED, BatchPlan, Owned, Shard
from pipeline.run_folder.events import Events
from pipeline.run_folder.layout import state_folder
from pipeline.run_folder.leftovers import remove_leftovers
from pipeline.run_folder.lock import Lock
from pipeline.run_folder.markers import Markers
from pipeline.run_folder.mend import Outstanding, find_outstanding
from pipeline.run_folder.run import RunMismatch, begin_run, has_seals
from pipeline.run_folder.units import Counts
from pipeline.sources.reader import unit_reader
from pipeline.sweep.inputs import as_written
from pipeline.sweep.plan import PlannedCell
from pipeline.sweep.timing import Efforts


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeLimits:
    """When a sweep and a cell have to stop; looked at whenever a unit is through."""

    ends: float | None = None  # of time.monotonic()
    cell_s: float | None = None

    def over(self) -> bool:
        """Return whether the sweep has to stop."""
        return self.ends is not None and time.monotonic() > self.ends


def _is_there(_: BaseException) -> None:
    """Do nothing: nobody watches the cluster."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """Settings that all cells of one call share."""

    folder: str  # the sweep's
    loaders: Loaders
    lock: Lock
    limits: TimeLimits
    events: Events | None = None
    check_cluster: Callable[[BaseException], None] = _is_there  # raises ClusterLost


@dataclass(slots=True, kw_only=True)
class CellRun:
    """A cell at work: what is left of it, and what this call has done for it."""

    planned: PlannedCell
    run: dict[str, Any]
    outstanding: Outstanding | None  # None where it is complete
    todo: set[int]
    lock: Lock  # of the sweep
    done: Counts = field(default_factory=Counts)
    seconds: float = 0.0  # between units of all cells, each span counted for the cell whose unit came in
    complete: bool = False
    reason: str | None = None  # why it was given up
    events: Events | None = None  # of the sweep

    @property
    def name(self) -> str:
        """Return the cell's name as people read it."""
        return str(self.planned.cell.name)

    @property
    def markers(self) -> Markers:
        """Return the markers of its workers."""
        return Markers(folder=state_folder(self.planned.plan.settings.output), driver=self.lock.owner.token)

    @property
    def open(self) -> bool:
        """Return whether it is neither complete nor given up."""
        return not self.complete and self.reason is None

    def abandon(self, reason: str) -> None:
        """Leave the rest undone, unless it is complete; units that the actors have not started are passed over."""
        if not self.open:
            return
        self.reason = reason
        self.markers.put(STOPPED)
        say(f"{self.name}: given up: {reason}")
        self._note("cell_given_up", message=reason)

    def take(self, report: UnitReport, seconds: float, limits: TimeLimits) -> None:
        """Count a unit; complete the cell, or give it up, where that is due."""
        if not report.counts.rows:
            return
        self.todo.discard(report.unit)
        self.done += report.counts
        self.seconds += seconds
        if not self.open:
            return
        if not self.todo:
            self.finish()
            return
        try:
            check_budget(self.done, self.planned.plan.settings)
        except ErrorBudgetSpent as error:
            self.abandon(str(error))
        if self.open and limits.cell_s is not None and self.seconds > limits.cell_s:
            self.abandon(f"out of time: {self.seconds:.0f} s, the next call goes on with {len(self.todo)} units")

    def finish(self) -> None:
        """Merge the units; those that are broken are to be done again. Raises FolderInUse where the sweep is another
        driver's by now."""
        self.lock.confirm()
        outstanding, timings = self.outstanding, {"seconds": round(self.seconds, 3)}
        assert outstanding is not None
        merged = unless_broken(
            lambda: outstanding.merge(self.run["fingerprint"], timings), outstanding.units.folder, f"{self.name}: "
        )
        if merged is None:
            self.todo = set(outstanding.left())
            return
        self.complete = True
        say(f"{self.name}: complete")
        self._note("cell_complete", rows=merged["rows"], errors=merged["errors"])

    def _note(self, event: Literal["cell_complete", "cell_given_up"], **values: object) -> None:
        if self.events is not None:
            self.events.add(event, time.monotonic(), cell=self.name, **values)

    def shard(self, loaders: Loaders) -> Shard:
        """Return what the actors are told of it."""
        plan = self.planned.plan
        return Shard(
            settings=plan.settings,
            read=unit_reader(plan.listing),
            load_preprocess=partial(loaders.preprocess, parts=self.planned.parts),
            folder=plan.settings.output,
            run=self.run["run"],
            markers=self.markers,
            lock=Owned.of(self.lock),
            stoppable=True,
        )


def begin(planned: PlannedCell, lock: Lock, events: Events | None = None) -> CellRun:
    """Begin a cell, or go on with it; complete at once where nothing but the merge was left. Raises FolderInUse."""
    lock.confirm()  # engines before this one may have taken hours
    plan = planned.plan
    folder = plan.settings.output
    remove_leftovers(folder)
    said = {"model": planned.model, "data": as_written(planned.cell.asking).origin()}
    run = begin_run(folder, {**plan.describe(), **said}, plan.listing.files)
    outstanding = find_outstanding(plan.units(run["run"], sealed=has_seals(run)))
    cell = CellRun(
        planned=planned,
        run=run,
        outstanding=outstanding,
        todo=set(outstanding.left()) if outstanding else set(),
        lock=lock,
        complete=outstanding is None,
        events=events,
    )
    if outstanding is not None and outstanding.lost:
        say(f"{cell.name}: {outstanding.said()}")
    if cell.open and not cell.todo:
        cell.finish()
    return cell


def answer_cells(cells: Sequence[CellRun], call: Call) -> None:
    """Answer what is left of cells that share an engine; each is complete or given up in the end."""
    try:
        in_rounds(lambda: _one_round(cells, call), call.folder)
    except RunFailed as error:
        for cell in cells:
            cell.abandon(str(error))


def _one_round(cells: Sequence[CellRun], call: Call) -> bool | None:
    """Answer what is left once; return None where that may be done again, as some units were broken."""
    left = [cell for cell in cells if cell.open]
    if not left or call.limits.over():
        return True
    try:
        _answer(left, call)
    except EngineNotLoaded as error:
        call.check_cluster(error)
        for cell in left:
            cell.abandon(str(error))
    except RunFailed as error:
        call.check_cluster(error)
        _isolate([cell for cell in left if cell.open], error, call)
    return None


def _isolate(cells: Sequence[CellRun], error: RunFailed, call: Call) -> None:
    """Answer each alone: what ended all of them came from one, which is given up."""
    if len(cells) == 1:
        cells[0].abandon(str(error))
        return
    say(f"{error}; the {len(cells)} cells that are left go on one by one")
    for cell in cells:
        answer_cells([cell], call)


def _answer(cells: Sequence[CellRun], call: Call) -> None:
    """Answer all that is left of these cells in one pass. Raises RunFailed, EngineNotLoaded, FolderInUse."""
    settings = cells[0].planned.plan.settings
    placement = plan_placement(settings, _load_of(cells))
    for cell in cells:
        _record_precision(cell, placement)
    open = [cell for cell in cells if cell.open]
    if not open:
        return
    shards = [cell.shard(call.loaders) for cell in open]
    plan = BatchPlan.of(shards, [sorted(cell.todo) for cell in open], call.loaders.engine)
    progress = progress_of(settings.model_copy(update={"output": call.folder}), _load_of(open).prompts, call.events)
    progress.cells = [cell.name for cell in open]
    progress.expect(placement.models)
    say(f"{progress.total_rows:,} answers to give in {len(open)} cells of {settings.model}\nloading the model")
    efforts = Efforts(folder=call.folder)
    title = settings.model_copy(update={"output": f"sweep {call.folder}"})
    with shown(progress, title), said_while_waiting(placement, progress.say_if_silent):
        for report in run_units(plan, placement, _load_of(open), say, progress.watch):
            call.lock.check()
            progress.add(report)
            cell = open[report.shard]
            cell.take(report, efforts.add(cell.name, report), call.limits)
            if not cell.open:
                efforts.write()
            if call.limits.over():
                break
    progress.end()
    efforts.write()


def _load_of(cells: Sequence[CellRun]) -> Load:
    """Return what is left of these cells."""
    prompts = sum(
        cell.planned.plan.rows_of(unit) * cell.planned.plan.num_prompts for cell in cells for unit in cell.todo
    )
    return Load(units=sum(len(cell.todo) for cell in cells), prompts=prompts)


def _record_precision(cell: CellRun, placement: Placement) -> None:
    try:
        record_precision(cell.planned.plan.settings, placement)
    except RunMismatch as error:
        cell.abandon(str(error))
