"""Job: a plan to a complete run folder: begin, answer what is not done, finish."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pipeline.environment import cards_here, check_wait
from pipeline.execution.executor import Executor, Loaders, say
from pipeline.execution.progress import Progress, describe_engine
from pipeline.execution.ray_data import RunFailed
from pipeline.execution.signals import guarded
from pipeline.plan import Plan, Summary, find_complete, summarise, with_scores
from pipeline.preflight import check_changes, check_machine
from pipeline.run_folder.leftovers import remove_leftovers
from pipeline.run_folder.lock import Lock, hold
from pipeline.run_folder.mend import find_gone, lost_units, mend_run
from pipeline.run_folder.merge import BrokenUnits, finish_run
from pipeline.run_folder.run import RunMismatch, begin_run, has_seals, is_complete, read_manifest, read_run
from pipeline.run_folder.units import done_units, unit_path
from pipeline.sources.duplicates import refuse_duplicate_ids
from pipeline.sources.reader import unit_reader
from pipeline.stages.generate import Engine
from pipeline.stages.preprocess import Preprocess
from pipeline.storage import filesystem as fs
from schemas.job import JobSettings

ROUNDS = 3  # units found broken when they are merged are answered again, but not for ever


def run_job(
    plan: Plan, load: Callable[[JobSettings], Engine] | Loaders, *, continue_with_changes: bool = False
) -> Summary:
    """Answer every row that has no answer. Raises RunMismatch, FolderInUse, ErrorBudgetSpent, RunFailed, Stopped."""
    check_wait(plan.settings.wait_for_cluster)
    if continue_with_changes or read_run(plan.settings.output) is None:
        refuse_duplicate_ids(plan.listing)  # of a run that goes on they have been looked at
    check_machine(plan.settings, cards_here())  # refuses here what the actors could only die of
    model = Preprocess(plan.settings).preprocessor.describe()  # likewise: a chat template that does not suit it
    loaders = load if isinstance(load, Loaders) else Loaders(engine=load)
    with guarded(), hold(plan.settings.output) as lock:
        remove_leftovers(plan.settings.output)
        job = _Job(plan=plan, model=model, loaders=loaders, lock=lock, continue_with_changes=continue_with_changes)
        return job.run()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """A job whose folder is held."""

    plan: Plan
    model: dict[str, Any]  # what run.json says of it
    loaders: Loaders
    lock: Lock
    continue_with_changes: bool

    def run(self) -> Summary:
        began = time.monotonic()
        plan, folder = self.plan, self.plan.settings.output
        if (complete := find_complete(plan, held=True)) is not None:  # by another driver until now
            return complete
        run = self._begin()
        units, manifest = plan.units(run["run"], sealed=has_seals(run)), read_manifest(folder)
        lost = find_gone(folder, manifest) if manifest else []
        wanted = lost_units(units, lost) if manifest else list(range(units.num_units))
        if lost:
            say(f"complete, but lost: {'; '.join(map(str, lost))}: answering {len(wanted):,} units again")
        progress: Progress | None = None
        for _ in range(ROUNDS):
            progress = self._answer_what_is_left(run["run"], wanted) or progress
            self.lock.confirm()
            try:
                if manifest:
                    manifest = mend_run(units, manifest, lost)
                else:
                    manifest = finish_run(units, run["fingerprint"], _timings(began, progress))
            except BrokenUnits as error:
                say(f"{error}; answering them again")
                for unit in error.units:
                    fs.delete(unit_path(folder, unit))
            else:
                pace = progress.rows_per_s() if progress else None
                return summarise(with_scores(plan.settings, manifest), folder, pace and pace / plan.num_prompts)
        raise RunFailed(f"units were broken {ROUNDS} times in a row: is the storage of {folder} sound?")

    def _begin(self) -> dict[str, Any]:
        plan, folder = self.plan, self.plan.settings.output
        description = {**plan.describe(), "model": self.model}
        changed = self.continue_with_changes and not is_complete(folder, description)
        if changed and read_manifest(folder) is not None:
            raise RunMismatch(
                f"{folder} is complete and does not go on: choose a new --output for other settings or input"
            )
        if self.continue_with_changes:
            check_changes(plan)
        return begin_run(folder, description, plan.listing.files, continue_with_changes=self.continue_with_changes)

    def _answer_what_is_left(self, run: str, wanted: list[int]) -> Progress | None:
        """How it went, None where nothing was left."""
        plan, settings = self.plan, self.plan.settings
        done = done_units(settings.output)
        todo = [unit for unit in wanted if unit not in done]
        if done:
            say(f"resuming: {len(wanted) - len(todo):,} of {len(wanted):,} units are done")
        if not todo:
            return None
        executor = Executor(
            settings=settings,
            read=unit_reader(plan.listing),
            loaders=self.loaders,
            lock=self.lock,
            folder=settings.output,
            run=run,
            continue_with_changes=self.continue_with_changes,
        )
        return executor.answer(todo, sum(map(plan.rows_of, todo)) * plan.num_prompts)


def _timings(began: float, progress: Progress | None) -> dict[str, Any]:
    """What the manifest says of this call: its seconds, and what its engines did in them."""
    seconds = {"seconds": round(time.monotonic() - began, 3)}
    return seconds if progress is None else {**seconds, "engine": describe_engine(progress.engine())}
