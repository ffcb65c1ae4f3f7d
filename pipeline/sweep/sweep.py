"""A sweep from its plan to its table: what is not complete is answered, engine by engine, then all is scored."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from pipeline.execution.cluster_watch import Wishes, going_on
from pipeline.execution.executor import Loaders, say
from pipeline.execution.ray_cluster import on_cluster
from pipeline.execution.signals import guarded, stop_on_signals
from pipeline.job import noted
from pipeline.run_folder.events import Events
from pipeline.run_folder.leftovers import remove_sweeps_leftovers
from pipeline.run_folder.lock import hold
from pipeline.run_folder.units import to_parquet
from pipeline.stages.generate import Engine
from pipeline.storage import filesystem as fs
from pipeline.sweep.page import to_html, to_markdown
from pipeline.sweep.pages import pages_of
from pipeline.sweep.plan import PlannedCell, SweepPlan
from pipeline.sweep.results import OUT_OF_TIME, Result, results_to_table, score_sweep
from pipeline.sweep.running import Call, TimeLimits, answer_cells, begin
from schemas.job import JobSettings
from schemas.sweep import CellName


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepSummary:
    """The last line of stdout; `rows` are of complete cells; in `failed` cells of those not one was answered."""

    cells: int
    complete: int
    failed: int
    incomplete: int
    rows: int
    errors: int
    output: str


def run_sweep(plan: SweepPlan, load: Callable[[JobSettings], Engine] | Loaders) -> SweepSummary:
    """Answer what is not complete, score what is. Raises FolderInUse, Stopped; a cell that fails is in the table."""
    loaders = load if isinstance(load, Loaders) else Loaders(engine=load)
    output = plan.settings.output
    with guarded(), hold(output) as lock, stop_on_signals(lock.last_word.dismiss):
        remove_sweeps_leftovers(output)
        events = Events.of(output, lock.confirm)
        with noted(events, cells=len(plan.cells), complete=sum(cell.complete for cell in plan.cells)) as end:
            call = Call(folder=output, loaders=loaders, lock=lock, limits=_limits(plan), events=events)
            results = _answer_and_score(plan, call)
            summary = _summarise(results, output)
            end |= {name: getattr(summary, name) for name in ("cells", "complete", "rows", "errors")}
    return summary


def _answer_and_score(plan: SweepPlan, call: Call) -> list[Result]:
    """Answer what is left of all cells, and write the table."""
    reasons: dict[CellName, str] = {}
    if engines := list(plan.engines()):
        wishes = Wishes.of([planned.plan.settings for cells in engines for planned in cells])
        reasons = going_on(lambda: _answer_all(engines, call, wishes), wishes, call.lock.release)
    say("scoring")
    results = score_sweep(plan, reasons)
    call.lock.confirm()
    write_results(call.folder, results)
    return results


def write_results(output: str, results: Sequence[Result]) -> None:
    """Write the table as Parquet, Markdown and a page."""
    fs.write_atomic(fs.join(output, "results.parquet"), to_parquet(results_to_table(results)))
    fs.write_atomic(fs.join(output, "results.md"), to_markdown(results).encode())
    fs.write_atomic(fs.join(output, "results.html"), to_html(results, pages_of(output, results)).encode())


def _limits(plan: SweepPlan) -> TimeLimits:
    minutes, cell = plan.settings.minutes, plan.settings.cell_minutes
    ends = time.monotonic() + minutes * 60 if minutes else None
    return TimeLimits(ends=ends, cell_s=cell * 60 if cell else None)


def _answer_all(engines: Sequence[Sequence[PlannedCell]], call: Call, wishes: Wishes) -> dict[CellName, str]:
    """Answer engine by engine; return why some cells were given up."""
    reasons: dict[CellName, str] = {}
    with on_cluster(wishes, call.lock.release) as watch:
        for cells in engines:
            reasons |= _answer(cells, replace(call, check_cluster=watch.check))
    return reasons


def _answer(cells: Sequence[PlannedCell], call: Call) -> dict[CellName, str]:
    """Answer the cells of one engine; return why some were given up."""
    running = [begin(planned, call.lock, call.events) for planned in cells]
    answer_cells(running, call)
    return {cell.planned.cell.name: cell.reason or OUT_OF_TIME for cell in running if not cell.complete}


def _summarise(results: Sequence[Result], output: str) -> SweepSummary:
    cells = [result for result in results if result.headline]
    complete = [result for result in cells if result.status == "complete"]
    return SweepSummary(
        cells=len(cells),
        complete=len(complete),
        failed=sum(bool(result.rows) and result.errors == result.rows for result in complete),
        incomplete=len(cells) - len(complete),
        rows=sum(result.rows or 0 for result in complete),
        errors=sum(result.errors or 0 for result in complete),
        output=output,
    )
