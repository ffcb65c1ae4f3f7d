"""Job: a plan to a complete run folder: begin, answer what is not done, finish."""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pipeline import dataflow, storage
from pipeline.lock import Lock, hold
from pipeline.merge import BrokenUnits, finish_run
from pipeline.plan import Plan, Summary, find_complete, summarise
from pipeline.poison import Markers
from pipeline.progress import Progress
from pipeline.reader import unit_reader
from pipeline.run import RunMismatch, begin_run, read_manifest, settle
from pipeline.stages import Engine, Preprocess, engine_settings
from pipeline.stopping import stop_on_signals
from pipeline.units import Counts, done_units, unit_path
from schemas.job import JobSettings

ROWS_BEFORE_BUDGET = 100
_ROUNDS = 3  # units found broken when they are merged are answered again, but not for ever


class ErrorBudgetSpent(RuntimeError):
    """More rows failed than --max-error-rate allows; what is done stays and a rerun goes on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaders:
    """What the actors load; tests bring others by this door."""

    engine: Callable[[JobSettings], Engine]
    preprocess: Callable[[JobSettings], Preprocess] = Preprocess


def run_job(
    plan: Plan, load: Callable[[JobSettings], Engine] | Loaders, *, continue_with_changes: bool = False
) -> Summary:
    """Answer every row that has no answer. Raises RunMismatch, FolderInUse, ErrorBudgetSpent, RunFailed, Stopped."""
    engine_settings(plan.settings, on_gpu=False)  # refuses here what the actors could only die of
    if (complete := find_complete(plan)) is not None:
        return complete
    loaders = load if isinstance(load, Loaders) else Loaders(engine=load)
    with hold(plan.settings.output) as lock:
        job = _Job(plan=plan, loaders=loaders, lock=lock, continue_with_changes=continue_with_changes)
        return job.run()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """A job whose folder is held."""

    plan: Plan
    loaders: Loaders
    lock: Lock
    continue_with_changes: bool

    def run(self) -> Summary:
        began = time.monotonic()
        plan, folder = self.plan, self.plan.settings.output
        run = begin_run(folder, plan.describe(), plan.listing.files, continue_with_changes=self.continue_with_changes)
        if read_manifest(folder) is not None:
            raise RunMismatch(f"{folder} is complete: choose a new --output for other settings or other input")
        units = plan.units(run["run"])
        for _ in range(_ROUNDS):
            pace = self._answer_what_is_left(run)
            self.lock.check()
            try:
                seconds = {"seconds": round(time.monotonic() - began, 3)}
                manifest = finish_run(units, run["fingerprint"], seconds)
            except BrokenUnits as error:
                _say(f"{error}; answering them again")
                for unit in error.units:
                    storage.delete(unit_path(folder, unit))
            else:
                return summarise(manifest, folder, pace and pace / plan.num_prompts)
        raise dataflow.RunFailed(f"units were broken {_ROUNDS} times in a row: is the storage of {folder} sound?")

    def _answer_what_is_left(self, run: dict[str, Any]) -> float | None:
        """Answers a second, None where nothing was left."""
        done = done_units(self.plan.settings.output)
        todo = [unit for unit in range(self.plan.listing.num_units) if unit not in done]
        if not todo:
            return None
        if done:
            _say(f"resuming: {len(done):,} of {self.plan.listing.num_units:,} units are done")
        progress = Progress(total_rows=sum(map(self.plan.rows_of, todo)) * self.plan.num_prompts)
        with dataflow.on_cluster(), stop_on_signals():
            self._answer_units(run["run"], todo, progress)
        progress.show(end="\n")
        return progress.rows_per_s()

    def _answer_units(self, run: str, todo: list[int], progress: Progress) -> None:
        settings = self.plan.settings
        placement = dataflow.place(settings)
        precision = engine_settings(settings, on_gpu=placement.gpus > 0).dtype
        settle(settings.output, "precision", precision, continue_with_changes=self.continue_with_changes)
        _say(
            f"{progress.total_rows:,} answers to give in {len(todo):,} units; "
            f"{placement.preprocess_workers} preprocessing actors, {placement.gpus or 'no'} GPUs; loading the model"
        )
        work = dataflow.Work(
            settings=settings,
            read=unit_reader(self.plan.listing),
            load_preprocess=self.loaders.preprocess,
            load_engine=self.loaders.engine,
            folder=settings.output,
            run=run,
            markers=Markers(folder=settings.output, driver=self.lock.owner.token),
        )
        for counts in dataflow.run_units(todo, work, placement):
            progress.add(counts)
            self.lock.check()
            _check_budget(progress.done, settings.max_error_rate)


def _check_budget(done: Counts, max_error_rate: float) -> None:
    if done.rows < ROWS_BEFORE_BUDGET or done.errors <= max_error_rate * done.rows:
        return
    types = ", ".join(f"{one.rows} {one.stage}/{one.type}" for one in done.by_type)
    examples = [f"  {one.stage}/{one.type}  {example}" for one in done.by_type for example in one.examples]
    raise ErrorBudgetSpent(
        f"{done.errors} of {done.rows} answers failed, more than --max-error-rate {max_error_rate:g} allows: {types}. "
        "What is done stays; run the same command again to go on, with a higher rate if these errors are expected.\n"
        + "\n".join(examples)
    )


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")
