"""Job: a plan to a complete run folder: begin, answer what is not done, finish."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from pipeline.environment import cards_here, check_wait
from pipeline.execution.executor import ErrorBudgetSpent, Loaders, answer_units, in_rounds, say, unless_broken
from pipeline.execution.progress import Progress, describe_engine
from pipeline.execution.signals import Stopped, guarded
from pipeline.execution.work_units import BatchPlan, Owned, Shard
from pipeline.plan import Plan, Summary, find_complete, summarise, with_scores
from pipeline.preflight import check_changes, check_machine
from pipeline.run_folder.events import Events
from pipeline.run_folder.layout import state_folder
from pipeline.run_folder.leftovers import remove_leftovers
from pipeline.run_folder.lock import FolderInUse, hold
from pipeline.run_folder.markers import Markers
from pipeline.run_folder.mend import Outstanding, find_outstanding
from pipeline.run_folder.run import RunMismatch, begin_run, has_seals, is_complete, read_manifest, read_run
from pipeline.sources.duplicates import refuse_duplicate_ids
from pipeline.sources.index_store import keep_index
from pipeline.sources.reader import unit_reader
from pipeline.stages.generate import Engine
from pipeline.stages.preprocess import Preprocess
from schemas.engine import EngineStatistics
from schemas.job import JobSettings


def run_job(
    plan: Plan, load: Callable[[JobSettings], Engine] | Loaders, *, continue_with_changes: bool = False
) -> Summary:
    """Answer every row that has no answer. Raises RunMismatch, FolderInUse, ErrorBudgetSpent, RunFailed, Stopped."""
    folder = plan.settings.output
    check_wait(plan.settings.wait_for_cluster)
    if continue_with_changes or read_run(folder) is None:
        refuse_duplicate_ids(plan.listing)  # of a run that goes on they have been looked at
    check_machine(plan.settings, cards_here())  # fail here, before an actor would
    stage = Preprocess(plan.settings)  # and a chat template that does not suit the model
    loaders = load if isinstance(load, Loaders) else Loaders(engine=load)
    with guarded(), hold(folder) as lock:
        remove_leftovers(folder)
        if (complete := find_complete(plan, held=True)) is not None:  # by another driver until now
            return complete
        run = begin(plan, stage.preprocessor.describe(), continue_with_changes=continue_with_changes)
        events = Events.of(folder, lock.confirm)
        shard = Shard(
            settings=plan.settings,
            read=unit_reader(plan.listing),
            load_preprocess=partial(loaders.preprocess, parts=stage.parts),
            folder=folder,
            run=run["run"],
            markers=Markers(folder=state_folder(folder), driver=lock.owner.token),
            lock=Owned.of(lock),
        )

        def answer(units: list[int]) -> Progress:
            batch_plan = BatchPlan.of([shard], [units], loaders.engine)
            rows = sum(map(plan.rows_of, units)) * plan.num_prompts
            return answer_units(batch_plan, rows, lock, events, continue_with_changes=continue_with_changes)

        with noted(events, answers=plan.listing.num_rows * plan.num_prompts, units=plan.listing.num_units) as end:
            manifest, progress = answer_and_merge(plan, run, answer, lock.confirm)
            end |= {name: manifest[name] for name in ("rows", "ok", "errors")}
        pace = progress.rows_per_s() if progress else None
        return summarise(with_scores(plan.settings, manifest), folder, pace and pace / plan.num_prompts)


@contextmanager
def noted(events: Events, **begun: object) -> Iterator[dict[str, object]]:
    """Note when the block begins, and how it ends, with what it puts into the dictionary that it is given."""
    events.add("started", time.monotonic(), **begun)
    end: dict[str, object] = {}
    try:
        yield end
    except FolderInUse:  # the events are another driver's now
        raise
    except ErrorBudgetSpent as error:
        events.add("budget_spent", time.monotonic(), message=str(error))
        raise
    except (Stopped, KeyboardInterrupt) as error:
        events.add("stopped", time.monotonic(), message=str(error))
        raise
    except BaseException as error:
        events.add("failed", time.monotonic(), message=f"{type(error).__name__}: {error}")
        raise
    events.add("finished", time.monotonic(), **end)


def begin(plan: Plan, model: dict[str, Any], *, continue_with_changes: bool) -> dict[str, Any]:
    """Write run.json, or go on with the one that is there; raises RunMismatch where it is another run's."""
    folder, description = plan.settings.output, {**plan.describe(), "model": model}
    changed = continue_with_changes and not is_complete(folder, description)
    if changed and read_manifest(folder) is not None:
        raise RunMismatch(f"{folder} is complete and does not go on: choose a new --output for other settings or input")
    if continue_with_changes:
        check_changes(plan)
    run = begin_run(folder, description, plan.listing.files, continue_with_changes=continue_with_changes)
    keep_index(state_folder(folder), plan.listing.files, plan.listing.listed)
    return run


def answer_and_merge(
    plan: Plan,
    run: dict[str, Any],
    answer: Callable[[list[int]], Progress],
    confirm: Callable[[], None],
) -> tuple[dict[str, Any], Progress | None]:
    """Answer what is not done and merge it; return the manifest, and how it went, None where all was done.

    Raises RunFailed where units stay broken however often they are answered, and what `answer` and `confirm` raise.
    """
    folder, began = plan.settings.output, time.monotonic()
    outstanding = find_outstanding(plan.units(run["run"], sealed=has_seals(run)))
    assert outstanding is not None  # or the run would not have begun
    if outstanding.lost:
        say(outstanding.said())
    progress: Progress | None = None
    worked = EngineStatistics()  # in all rounds

    def one_round() -> dict[str, Any] | None:
        nonlocal progress, worked
        if todo := _left(outstanding):
            progress = answer(todo)
            worked += progress.engine()
        confirm()
        timings = _timings(began, progress, worked)
        return unless_broken(lambda: outstanding.merge(run["fingerprint"], timings), folder)

    return in_rounds(one_round, folder), progress


def _left(outstanding: Outstanding) -> list[int]:
    """Return the units that are not done, and say how many are."""
    todo, num_wanted = outstanding.left(), len(outstanding.wanted)
    if len(todo) < num_wanted:
        say(f"resuming: {num_wanted - len(todo):,} of {num_wanted:,} units are done")
    return todo


def _timings(began: float, progress: Progress | None, worked: EngineStatistics) -> dict[str, Any]:
    """Return what the manifest says of this call: its seconds, and what its engines did in them, and when."""
    seconds = {"seconds": round(time.monotonic() - began, 3)}
    if progress is None:
        return seconds
    return {**seconds, "engine": describe_engine(worked), "pace": progress.pace.described()}
