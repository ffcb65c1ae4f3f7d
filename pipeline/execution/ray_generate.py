"""The pool of generating actors: one for each model that the cluster's GPUs hold by now.

An actor is given a unit when it has room for it, so that nothing waits for one that is slow or gone. One that dies is
not restarted by Ray, which would bind its units to it for as long as there is no GPU: they go to others, and another
actor is started where there is a GPU.
"""

import itertools
import os
import socket
import time
import uuid
from collections.abc import Callable, Collection
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pyarrow as pa
import ray

from pipeline.execution.dispatch import Dispatch, Prepared
from pipeline.execution.placement import MOST_UNITS, Load, Placement, models_wanted, units_at_once
from pipeline.execution.progress import UnitReport
from pipeline.execution.quarantine import MAX_LOADS, Guard, StepLimit
from pipeline.execution.ray_errors import (
    EngineNotLoaded,
    RunFailed,
    cause_of,
    died_with_its_machine,
    failed_to_load,
    is_death,
)
from pipeline.execution.watchdog import Watchdog
from pipeline.execution.work_units import BatchPlan, unpack
from pipeline.run_folder.markers import Note
from pipeline.run_folder.units import Counts, count_answers, trace_path
from pipeline.stages.engine_settings import step_seconds
from pipeline.stages.generate import Generate, final_answers
from pipeline.stages.locks import RWLock
from schemas.wording import counted

_AHEAD = 1  # unit that an actor has beside those that it works on, so that it never waits for one

Handler = Callable[[], UnitReport | None]  # what is to be done about something that has happened


@dataclass(slots=True, kw_only=True)
class _Actor:
    handle: Any
    ready: bool = False


@dataclass(slots=True, kw_only=True)
class Generators:
    """The actors; what happens to them is posted, to be handled in the thread that owns the dispatch."""

    plan: BatchPlan
    placement: Placement
    load: Load
    dispatch: Dispatch
    post: Callable[[Handler], None]
    say: Callable[[str], None]
    actors: dict[int, _Actor] = field(default_factory=dict)
    most: int = 0  # that were ready at the same time
    _names: "itertools.count[int]" = field(default_factory=itertools.count)
    _shared: Any = None  # the plan, in the object store
    _reports: dict[Prepared, Any] = field(default_factory=dict)  # that are to come
    _unready_deaths: int = 0  # since an actor was ready

    def follow(self, machines: list[dict[str, float]], *, just_lost: bool = False) -> None:
        """Start actors for GPUs that have come, and wait no more for those that have gone.

        Where a machine is only just lost, its own actors may count still: another that loads is none too many.
        """
        lacking = models_wanted(machines, self.placement) - len(self.actors)
        for _ in range(lacking):
            self._start()
        waiting = [name for name, actor in self.actors.items() if not actor.ready and not just_lost]
        for name in waiting[: max(0, -lacking)]:
            ray.kill(self.actors.pop(name).handle)

    def give_out(self) -> None:
        """Give units that are prepared to actors that have room for them."""
        while (pair := self.dispatch.next_pair()) is not None:
            name, prepared = pair
            report = self.actors[name].handle.answer.remote(prepared.block, attempt=prepared.attempt)
            self._reports[prepared] = report
            report.future().add_done_callback(self._posting(partial(self._on_report, name, prepared)))

    def lose_machines(self, machines: Collection[str]) -> None:
        """Have all prepared again that was on machines that are gone, and wait for none of it."""
        for prepared in self.dispatch.lose_machines(machines):
            # Of what is at work already this is no end; one that waits for its samples may be heard of never.
            ray.cancel(self._reports.pop(prepared))

    def close(self) -> None:
        """End the actors, whatever they are at."""
        for actor in self.actors.values():
            ray.kill(actor.handle)
        self.actors.clear()

    def _start(self) -> None:
        if self._shared is None:
            self._shared = ray.put(self.plan.for_workers())
        name, gpus = next(self._names), self.placement.gpus_per_model if self.placement.models else 0
        # A CPU of its own would be taken by preprocessing; threads enough that it begins with what it is given at once.
        actor = ray.remote(_GenerateAndWrite).options(
            num_cpus=0, num_gpus=gpus, max_restarts=0, max_concurrency=MOST_UNITS + _AHEAD + 1
        )
        handle: Any = actor.remote(self._shared, on_gpu=self.placement.models > 0)
        self.actors[name] = _Actor(handle=handle)
        room = handle.room.remote(self.load, self.placement.models)
        room.future().add_done_callback(self._posting(partial(self._on_ready, name)))

    def _posting(self, handle: Callable[["Future[Any]"], UnitReport | None]) -> Callable[["Future[Any]"], None]:
        return lambda future: self.post(partial(handle, future))

    def _on_ready(self, name: int, future: "Future[Any]") -> None:
        if name not in self.actors:
            return
        if (error := future.exception()) is not None:
            self._on_unready_death(name, error)
            return
        self._unready_deaths = 0
        self.actors[name].ready = True
        self.most = max(self.most, self.dispatch.add_worker(name, future.result() + _AHEAD))

    def _on_unready_death(self, name: int, error: BaseException) -> None:
        """Start another one in its place, but not again and again where loading is what kills."""
        del self.actors[name]
        if failed_to_load(error) or not is_death(error):
            raise EngineNotLoaded(cause_of(error)) from error
        if died_with_its_machine(error):
            return
        self._unready_deaths += 1
        if self._unready_deaths >= MAX_LOADS:
            raise EngineNotLoaded(
                f"a generate actor died {MAX_LOADS} times while it was loading: its process was killed, as when memory "
                "runs out or native code crashes; Ray's session logs have its last words"
            ) from error
        self._start()

    def _on_report(self, name: int, prepared: Prepared, future: "Future[Any]") -> UnitReport | None:
        self._reports.pop(prepared, None)
        error = future.exception()
        if error is not None and is_death(error):
            self._on_death(name, error)
            return None
        if isinstance(error, ray.exceptions.TaskCancelledError | ray.exceptions.ObjectLostError):
            self.dispatch.add_lost(name, prepared)
            return None
        if error is not None:
            raise RunFailed(cause_of(error)) from error
        report: UnitReport = future.result()
        assert report.key == prepared.key
        is_new = self.dispatch.add_report(name, prepared, report.prepare_s)
        return report if is_new else None

    def _on_death(self, name: int, error: BaseException) -> None:
        """Give what it was at to others, and start another one."""
        if (actor := self.actors.pop(name, None)) is None:  # said by the first of its units
            return
        ray.kill(actor.handle)  # one that only cannot be reached would go on
        innocent = died_with_its_machine(error)
        at_work = self.dispatch.remove_worker(name)
        self.dispatch.add_again(at_work, innocent=innocent)
        if not innocent:
            self.say(f"a generate actor has died; what it was at ({counted(len(at_work), 'unit')}) is done elsewhere")
            self._start()


class _GenerateAndWrite:
    """Units of samples to reports: a unit's answers are written before anybody hears of it."""

    def __init__(self, plan: BatchPlan, *, on_gpu: bool) -> None:
        self._plan = plan
        self._gate = RWLock()
        self._life = uuid.uuid4().hex  # of this process: another one counts from nothing
        self._machine = socket.gethostname()
        self._generate = Generate(plan.settings, plan.load_engine)
        if seconds := step_seconds(plan.settings, on_gpu=on_gpu):
            self._generate.watch_steps(StepLimit(Watchdog(), seconds, self._note(seconds)))

    def _note(self, seconds: float) -> Note:
        """Return what is left in the run folder where a step takes too long."""
        text = (
            f"A step of the engine of process {os.getpid()} on {self._machine} took longer than --step-seconds "
            f"({seconds:g} s), as on a GPU that hangs. The process was ended, and what it was at was done elsewhere.\n"
        )
        folder = self._plan.shards[0].markers.folder
        return Note(url=trace_path(folder, f"generate-StepTimedOut-{self._machine}"), text=text)

    def room(self, load: Load, models: int) -> int:
        """Return how many units the engine works on at once, now that it has found what its card holds."""
        return units_at_once(self._plan.settings, load, models, self._generate.num_slots())

    def answer(self, batch: pa.Table, *, attempt: int) -> UnitReport:
        """Answer a unit, write it, and report it."""
        key, samples = unpack(batch)
        counts, began, write_s = Counts(), time.monotonic(), 0.0
        if samples.num_columns:
            shard = self._plan.shards[key.shard]
            markers = shard.markers.of_attempt(attempt)
            guard = Guard("generate", markers, self._generate.fail_rows, self._gate)
            with self._generate.sampling(shard.settings):
                began = time.monotonic()
                answers = guard(key.unit, lambda _: samples, self._generate)
            with self._gate.shared():  # what kills here must not count for a unit that is alone
                answers = final_answers(answers, shard.settings)
                written = time.monotonic()
                shard.write(key.unit, answers)
                write_s = time.monotonic() - written
            counts = count_answers(answers)
        return UnitReport(
            counts=counts,
            shard=key.shard,
            unit=key.unit,
            seconds=time.monotonic() - began if samples.num_columns else 0.0,
            worker=self._life,
            engine=self._generate.statistics(),
            machine=self._machine,
            write_s=write_s,
            prepare_s=batch.column("seconds")[0].as_py(),
            input_share=batch.column("input_share")[0].as_py(),
        )
