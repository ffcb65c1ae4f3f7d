"""Executor: some units of a run through the cluster, under a held lock, until they are done or too many rows fail."""

import sys
from collections.abc import Callable
from dataclasses import dataclass

from pipeline.execution import ray_data
from pipeline.execution.cluster_watch import Wishes, going_on
from pipeline.execution.placement import Load, Placement
from pipeline.execution.progress import Progress
from pipeline.execution.signals import stop_on_signals
from pipeline.execution.work_units import Part, Queue, Work
from pipeline.run_folder.lock import Lock
from pipeline.run_folder.markers import Markers
from pipeline.run_folder.run import settle
from pipeline.run_folder.units import Counts, done_units
from pipeline.sources.reader import UnitReader
from pipeline.stages.engine_settings import engine_settings
from pipeline.stages.generate import Engine
from pipeline.stages.preprocess import Preprocess
from schemas.job import JobSettings
from schemas.wording import printable_lines, redacted

ROWS_BEFORE_BUDGET = 100


class ErrorBudgetSpent(RuntimeError):
    """More rows failed than --max-error-rate allows; what is done stays and a rerun goes on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaders:
    """What the actors load; tests bring others by this door."""

    engine: Callable[[JobSettings], Engine]
    preprocess: Callable[[JobSettings], Preprocess] = Preprocess


@dataclass(frozen=True, slots=True, kw_only=True)
class Executor:
    """Where units come from and where their answers go."""

    settings: JobSettings
    read: UnitReader
    loaders: Loaders
    lock: Lock
    folder: str  # units/ is below it
    run: str
    continue_with_changes: bool = False

    def answer(self, units: list[int], total_rows: int) -> Progress:
        """Answer these units; returns how it went. Raises ErrorBudgetSpent, RunFailed, FolderInUse."""
        progress, wishes = Progress(total_rows=total_rows), Wishes.of([self.settings])
        going_on(lambda: self._answer(units, progress, wishes), wishes, self.lock.release)
        progress.end()
        return progress

    def _answer(self, units: list[int], progress: Progress, wishes: Wishes) -> None:
        """Answer those of these units that are not done."""
        done = done_units(self.folder)
        units = [unit for unit in units if unit not in done]
        if not units:
            return
        with ray_data.on_cluster(wishes, self.lock.release), stop_on_signals():
            placement = ray_data.place(self.settings, Load(units=len(units), prompts=progress.total_rows))
            self._settle_precision(placement)
            say(
                f"{progress.total_rows:,} answers to give in {len(units):,} units; "
                f"{placement.preprocess_workers} preprocessing actors, {describe_gpus(placement)}; loading the model"
            )
            with ray_data.said_while_waiting(placement, progress.say_if_silent):
                for receipt in ray_data.run_units(Queue.of([units]), self._work(), placement):
                    progress.add(receipt)
                    self.lock.check()
                    check_budget(progress.done, self.settings.max_error_rate)

    def _settle_precision(self, placement: Placement) -> None:
        precision = engine_settings(self.settings, on_gpu=placement.models > 0).dtype
        output = self.settings.output
        settle(output, "precision", precision, continue_with_changes=self.continue_with_changes)

    def _work(self) -> Work:
        part = Part(
            settings=self.settings,
            read=self.read,
            load_preprocess=self.loaders.preprocess,
            folder=self.folder,
            run=self.run,
            markers=Markers(folder=self.settings.output, driver=self.lock.owner.token),
        )
        return Work(settings=self.settings, load_engine=self.loaders.engine, parts=(part,))


def describe_gpus(placement: Placement) -> str:
    """How many GPUs, and how they are shared out."""
    if not placement.models:
        return "no GPUs"
    gpus = placement.models * placement.gpus_per_model
    return f"{gpus} GPUs" if placement.gpus_per_model == 1 else f"{gpus} GPUs, {placement.gpus_per_model} a model"


def check_budget(done: Counts, max_error_rate: float) -> None:
    """Raise ErrorBudgetSpent, with a few examples of each type, where too many rows have failed."""
    if done.rows < ROWS_BEFORE_BUDGET or done.errors <= max_error_rate * done.rows:
        return
    types = ", ".join(f"{one.rows} {one.stage}/{one.type}" for one in done.by_type)
    examples = [f"  {one.stage}/{one.type}  {example}" for one in done.by_type for example in one.examples]
    raise ErrorBudgetSpent(
        f"{done.errors} of {done.rows} answers failed, more than --max-error-rate {max_error_rate:g} allows: {types}. "
        "What is done stays; run the same command again to go on, with a higher rate if these errors are expected.\n"
        + "\n".join(examples)
    )


def say(line: str) -> None:
    """Tell the person who waits, and the terminal nothing."""
    sys.stderr.write(printable_lines(redacted(line)) + "\n")
