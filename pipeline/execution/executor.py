"""Executor: units of a run through the cluster, under a held lock, until they are done or too many rows fail."""

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TypeVar

from pipeline.execution.cluster_watch import Wishes, going_on
from pipeline.execution.metrics import RunMetrics
from pipeline.execution.panel import open_panel
from pipeline.execution.placement import Load, Placement
from pipeline.execution.progress import Progress
from pipeline.execution.ray_cluster import on_cluster, plan_placement, said_while_waiting
from pipeline.execution.ray_data import run_units
from pipeline.execution.ray_errors import RunFailed
from pipeline.execution.signals import stop_on_signals
from pipeline.execution.work_units import BatchPlan
from pipeline.run_folder.events import Events
from pipeline.run_folder.lock import Lock
from pipeline.run_folder.merge import BrokenUnits
from pipeline.run_folder.run import record_found
from pipeline.run_folder.units import Counts, unit_path
from pipeline.stages.engine_settings import engine_settings
from pipeline.stages.generate import Engine
from pipeline.stages.preprocess import Preprocess
from pipeline.storage import filesystem as fs
from schemas.job import ROWS_BEFORE_BUDGET, JobSettings
from schemas.wording import counted, printable_lines, redacted

T = TypeVar("T")

ROUNDS = 3  # in which units that are found broken when they are merged are answered again


class ErrorBudgetSpent(RuntimeError):
    """More rows failed than --max-error-rate allows; what is done stays and a rerun goes on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaders:
    """Functions by which the actors load; tests bring others by this door."""

    engine: Callable[[JobSettings], Engine]
    preprocess: type[Preprocess] = Preprocess


def answer_units(
    plan: BatchPlan, total_rows: int, lock: Lock, events: Events | None = None, *, continue_with_changes: bool = False
) -> Progress:
    """Answer the units of a plan that has one shard; return how it went.

    Raises ErrorBudgetSpent, RunFailed, FolderInUse.
    """
    progress, wishes = progress_of(plan.settings, total_rows, events), Wishes.of([plan.settings])

    def answer() -> None:
        load = Load(units=plan.num_units, prompts=total_rows)
        with on_cluster(wishes, lock.release), stop_on_signals(lock.last_word.dismiss):
            placement = plan_placement(plan.settings, load)
            record_precision(plan.settings, placement, continue_with_changes=continue_with_changes)
            progress.expect(placement.models)
            given = f"{counted(total_rows, 'answer')} to give in {counted(load.units, 'unit')}"
            say(f"{given}; {describe_pools(placement)}\nloading the model")
            with shown(progress, plan.settings), said_while_waiting(placement, progress.say_if_silent):
                for report in run_units(plan, placement, load, say, progress.watch):
                    progress.add(report)
                    lock.check()
                    check_budget(progress.done, plan.settings)

    going_on(answer, wishes, lock.release)
    progress.end()
    return progress


def progress_of(settings: JobSettings, total_rows: int, events: Events | None = None) -> Progress:
    """Return the progress of a job that is about to begin, which its metrics follow."""
    metrics = RunMetrics(run=redacted(settings.output))
    return Progress(total_rows=total_rows, answers_each=settings.num_prompts, events=events, gauges=metrics)


def shown(progress: Progress, settings: JobSettings) -> AbstractContextManager[None]:
    """Show a job's progress in a panel for as long as the block runs, where stderr is a terminal."""
    return progress.shown(open_panel(f"llava-batch  {settings.output}"))


def record_precision(settings: JobSettings, placement: Placement, *, continue_with_changes: bool = False) -> None:
    """Record what precision `auto` is on this cluster; raise RunMismatch where the run began in another."""
    precision = engine_settings(settings, on_gpu=placement.models > 0).dtype
    record_found(settings.output, "precision", precision, continue_with_changes=continue_with_changes)


def in_rounds(one_round: Callable[[], T | None], folder: str) -> T:
    """Return what a round comes to. One that has removed broken units comes to None and is done again, ROUNDS times at
    most; then raise RunFailed."""
    for _ in range(ROUNDS):
        if (result := one_round()) is not None:
            return result
    raise RunFailed(f"units were broken {ROUNDS} times in a row: is the storage of {folder} sound?")


def unless_broken(finish: Callable[[], T], folder: str, name: str = "") -> T | None:
    """Return what `finish` does. Where units of the folder are broken remove these, to be answered again, and return
    None."""
    try:
        return finish()
    except BrokenUnits as error:
        say(f"{name}{error}; they are answered again")
        for unit in error.units:
            fs.delete(unit_path(folder, unit))
        return None


def describe_pools(placement: Placement) -> str:
    """Return what the pools begin with, and how GPUs are shared out."""
    actors = counted(placement.preprocess_workers, "preprocessing actor")
    actors += " to begin with" if placement.grows else ""
    if not placement.models:
        return f"{actors}, no GPUs"
    gpus = placement.models * placement.gpus_per_model
    shared = "" if placement.gpus_per_model == 1 else f", {placement.gpus_per_model} a model"
    return f"{actors}, {counted(gpus, 'GPU')}{shared}"


def check_budget(done: Counts, settings: JobSettings) -> None:
    """Raise ErrorBudgetSpent, with a few examples of each type, where too many rows have failed."""
    if done.rows < ROWS_BEFORE_BUDGET:
        return
    fetch = sum(one.rows for one in done.by_type if one.stage == "fetch")
    apart = settings.max_fetch_error_rate
    _check_share(done, fetch, "--max-fetch-error-rate", 1.0 if apart is None else apart)
    others = done.errors if apart is None else done.errors - fetch
    _check_share(done, others, "--max-error-rate", settings.max_error_rate)


def _check_share(done: Counts, failed: int, flag: str, most: float) -> None:
    if failed <= most * done.rows:
        return
    types = ", ".join(f"{one.rows} {one.stage}/{one.type}" for one in done.by_type)
    examples = [f"  {one.stage}/{one.type}  {example}" for one in done.by_type for example in one.examples]
    raise ErrorBudgetSpent(
        f"{failed} of {done.rows} answers failed, more than {flag} {most:g} allows: {types}. "
        "What is done stays; run the same command again to go on, with a higher rate if these errors are expected.\n"
        + "\n".join(examples)
    )


def say(line: str) -> None:
    """Tell the person who waits, and the terminal nothing."""
    sys.stderr.write(printable_lines(redacted(line)) + "\n")
