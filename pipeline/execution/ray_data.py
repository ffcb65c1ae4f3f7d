"""read -> preprocess -> generate -> write: Ray Data prepares units, which go to whichever generating actor has room.

A unit travels as one row, its samples as one Arrow stream: Ray may retry, move or reorder rows as it likes; a unit
stays whole and is written under its own name.
"""

import os
import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, suppress
from functools import partial
from types import TracebackType
from typing import Any, cast

import pyarrow as pa
import ray
from ray import cloudpickle
from ray.actor import ActorHandle
from ray.data import ActorPoolStrategy, DataContext, Dataset
from ray.data._internal.execution.execution_callback import ExecutionCallback
from ray.data._internal.execution.interfaces.ref_bundle import BlockEntry
from ray.data.exceptions import ExecutionTimeoutError

from pipeline.execution.dispatch import Dispatch, Prepared
from pipeline.execution.flow import Flow
from pipeline.execution.machines import Machines, check_shared
from pipeline.execution.placement import Load, Placement, units_at_once
from pipeline.execution.progress import UnitReport
from pipeline.execution.quarantine import Guard, RowWatch, bounded_loading
from pipeline.execution.ray_cluster import connect_no_more
from pipeline.execution.ray_errors import EngineNotLoaded, RunFailed, cause_of, never_ran
from pipeline.execution.ray_generate import Generators, Handler
from pipeline.execution.watchdog import Watchdog
from pipeline.execution.work_units import (
    NOTHING,
    STOPPED,
    Batch,
    BatchPlan,
    Spent,
    Task,
    UnitKey,
    keys_of,
    pack,
    with_keys,
)
from pipeline.run_folder.units import keep_trace
from pipeline.sources.open_files import OpenFiles
from pipeline.stages.locks import RWLock
from pipeline.stages.preprocess import Preprocess
from schemas.errors import Failure
from schemas.job import JobSettings
from schemas.wording import counted

_STARTS = 3  # in a row, of a source that comes to nothing
_MOST_TRACES = 1000  # that an actor keeps
_TICK_S = 1.0
_LOOK_S = 5.0  # between two looks at the cluster's machines
_WATCH_S = 0.5  # between two at the units
_UNITS_AT_ONCE = 2  # of a preprocessing actor: it never waits for storage
_WAITING_TASKS = 2  # that an actor has beside these
_BLOCKS_OF_A_TASK = 64  # that may wait to be taken; Ray Data's own 2 hold back the one task that hands out all
_END_S = 30.0  # that Ray Data's threads have once all is done; on a busy machine a step of its loop takes seconds
_BREAK_OFF_S = 4.0  # that they have otherwise: the cluster may be gone
_LESS_URGENT = 5  # than generating on the same machine, as `nice` has it
_HEAD = {"node:__internal_head__": 0.001}  # what is there for all of the run works on the head


def run_units(
    plan: BatchPlan,
    placement: Placement,
    load: Load,
    say: Callable[[str], None] | None = None,
    watch: Callable[[Flow], None] | None = None,
) -> Iterator[UnitReport]:
    """Answer these units and yield the report of each as it is written, in the order in which they finish.

    `watch` is told every second or so where units are. Raises RunFailed where an actor could not load or a bug ended
    the run. What dies with its machine is done elsewhere.
    """
    run = _Run(plan, placement, load, say or (lambda _: None))
    try:
        yield from run.reports(watch or (lambda _: None))
    finally:
        run.close()


class _Run:
    """One pass over a plan. All that happens elsewhere is posted, and handled by the thread that asks for reports."""

    def __init__(self, plan: BatchPlan, placement: Placement, load: Load, say: Callable[[str], None]) -> None:
        self._posted: queue.SimpleQueue[Handler] = queue.SimpleQueue()
        first = max(1, placement.models) * units_at_once(plan.settings, load, placement.models)
        self._dispatch = Dispatch(plan.tasks(), plan.num_units, first=first)
        self._generators = Generators(
            plan=plan, placement=placement, load=load, dispatch=self._dispatch, post=self._posted.put, say=say
        )
        self._plan, self._placement = plan, placement
        self._say, self._machines = say, Machines(say)
        self._seen_from = set[str]()  # machines whose first unit is where this one sees it
        self._starts_in_vain = 0
        self._source = self._start_source()

    def reports(self, watch: Callable[[Flow], None]) -> Iterator[UnitReport]:
        """Yield every unit's report."""
        look_at, watch_at = 0.0, 0.0
        while self._dispatch.num_left:
            if (now := time.monotonic()) >= look_at:
                self._follow_machines()
                look_at = now + _LOOK_S
            if now >= watch_at:
                watch(self._dispatch.flow())
                watch_at = now + _WATCH_S
            while tasks := self._dispatch.next_tasks():
                self._source.give(tasks)
            self._generators.give_out()
            with suppress(queue.Empty):
                if (report := self._posted.get(timeout=_TICK_S)()) is not None:
                    yield self._checked(report)

    def _follow_machines(self) -> None:
        seen = self._machines.look(ray.nodes())
        if seen.lost:
            self._generators.lose_machines(seen.lost)
        self._generators.follow(seen.resources, just_lost=bool(seen.lost))
        self._dispatch.store_bytes = sum(one.get("object_store_memory", 0.0) for one in seen.resources)
        if late := self._dispatch.repeat_late():
            self._say(f"{counted(late, 'unit')} did not come for far too long: prepared once more")

    def close(self) -> None:
        """End all that works for this pass."""
        all_done = not self._dispatch.num_left
        self._source.close(_END_S if all_done else _BREAK_OFF_S)
        if all_done:  # the cluster is there, and answers
            self._source.forget()
        self._generators.close()

    def _checked(self, report: UnitReport) -> UnitReport:
        """Raise RunFailed where a machine writes to a disk of its own."""
        if report.machine not in self._seen_from and report.counts.rows:
            check_shared(self._plan.shards[report.shard].folder, report.unit, report.machine)
            self._seen_from.add(report.machine)
        return report.beside(self._generators.most)

    def _start_source(self) -> "_Source":
        self._starts_in_vain += 1
        return _Source(self._plan, self._placement, self._on_prepared, self._on_end, self._posted.put)

    def _on_prepared(self, prepared: Prepared) -> None:
        self._starts_in_vain = 0
        self._dispatch.add_prepared(prepared)

    def _on_end(self, error: BaseException | None) -> None:
        """Begin again where the process that gave out tasks has died, or where Ray took actors back before they ran, as
        a cluster does that is only just there."""
        died = isinstance(error, ray.exceptions.ActorDiedError)
        if (error is None or (died and never_ran(error))) and self._starts_in_vain < _STARTS:
            self._source.close(_BREAK_OFF_S)
            self._source.forget()
            self._dispatch.prepare_again()
            self._source = self._start_source()
            return
        if error is None:
            raise RunFailed(f"what hands out units to be prepared has died {_STARTS} times in a row: is memory short?")
        if died:
            raise EngineNotLoaded(cause_of(error)) from error
        if isinstance(error, ray.exceptions.RayError):
            raise RunFailed(cause_of(error)) from error
        raise error


class _Source:
    """The Ray Data pipeline: tasks in, prepared units out, in whatever order they are ready."""

    def __init__(
        self,
        plan: BatchPlan,
        placement: Placement,
        on_prepared: Callable[[Prepared], None],
        on_end: Callable[[BaseException | None], None],
        post: Callable[[Handler], None],
    ) -> None:
        self._on_prepared, self._on_end, self._post = on_prepared, on_end, post
        feed = ray.remote(_Feed).options(num_cpus=0, max_concurrency=2, resources=_HEAD).remote()
        self._feed = cast("ActorHandle[_Feed]", feed)
        self._to_come = dict[int | None, list[UnitKey]]()  # by task, the units that are to come of it
        self._closed = _Closed()
        context = _context(self._closed, max(1, placement.models))
        with DataContext.current(context):  # a dataset keeps it; the process's own may serve others
            self._dataset = _dataset(plan, placement, self._feed)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def give(self, tasks: list[Task]) -> None:
        """Have these units prepared, by one worker."""
        self._feed.give.remote(cloudpickle.dumps(tasks))

    def close(self, within_s: float) -> None:
        """Take in no more; what is being prepared is not waited for."""
        self._closed.set()
        self._feed.give.remote(None)
        self._thread.join(within_s)  # what asks Ray for anything while it is shut down ends the process, with status 1
        if self._thread.is_alive():
            connect_no_more()

    def forget(self) -> None:
        """End the process that tasks came through: it would stay, with some 400 MB, till its handle is collected."""
        ray.kill(self._feed)

    def _run(self) -> None:
        with _Raised() as end:
            for bundle in self._dataset.iter_internal_ref_bundles():
                for entry in bundle.blocks:
                    self._post(partial(self._on_prepared, self._prepared(entry, bundle.schema)))
        if not self._closed.is_set():
            self._post(partial(self._on_end, end.error))

    def _prepared(self, entry: BlockEntry, schema: pa.Schema | None) -> Prepared:
        """Return a block as the unit that it is: the schema of a task's first block says which units it prepares."""
        made = entry.metadata.exec_stats
        assert made is not None
        if schema is not None:
            self._to_come[made.task_idx] = keys_of(schema)
        keys = self._to_come[made.task_idx]
        key = keys.pop(0)
        if not keys:
            del self._to_come[made.task_idx]
        return Prepared(key=key, block=entry.ref, machine=made.node_id, num_bytes=entry.metadata.size_bytes or 0)


class _Raised(AbstractContextManager["_Raised", bool]):
    """Keeps what its block raises, to be raised again in another thread."""

    error: BaseException | None = None

    def __exit__(
        self, _kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> bool:
        self.error = error
        return True


class _Feed:
    """Tasks on their way from the driver to the task of Ray Data that gives them out."""

    def __init__(self) -> None:
        self._waiting: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._begun = False

    def begin(self) -> bool:
        """Return whether this is the first that is to give tasks out."""
        first, self._begun = not self._begun, True
        return first

    def give(self, tasks: bytes | None) -> None:
        """Add tasks that one worker is to have; None says that there are no more."""
        self._waiting.put(tasks)

    def take(self) -> list[bytes | None]:
        """Return what has been added, once there is anything."""
        taken = [self._waiting.get()]
        with suppress(queue.Empty):
            while taken[-1] is not None:
                taken.append(self._waiting.get_nowait())
        return taken


def _giving_out(feed: "ActorHandle[_Feed]") -> Callable[[Batch], Iterator[Batch]]:
    """Return the function that yields rows of tasks as the driver hands them out, in whatever process it runs.

    Where its process dies Ray runs it again in another, and passes over as many rows as there were before, whatever is
    in them; and the dead one may have taken some that nobody has seen. So there it ends, and with it its source.
    """

    def give_out(_: Batch) -> Iterator[Batch]:
        with suppress(ray.exceptions.RayActorError):
            if not ray.get(feed.begin.remote()):
                return
            while True:
                given: list[bytes | None] = ray.get(feed.take.remote())
                for tasks in given:
                    if tasks is None:
                        return
                    yield pa.table({"tasks": pa.array([tasks], pa.large_binary())})

    return give_out


def _dataset(plan: BatchPlan, placement: Placement, feed: "ActorHandle[_Feed]") -> Dataset:
    most = {} if placement.grows else {"max_size": placement.preprocess_workers}
    least = 1 if placement.grows else placement.preprocess_workers
    return (
        ray.data.from_arrow(pa.table({"one": [0]}))  # that is there already: no task that might wait for a CPU
        .map_batches(_giving_out(feed), num_cpus=0, resources=_HEAD, **_ONE_ROW)
        .map_batches(
            _ReadAndPreprocess,
            fn_constructor_args=(plan.to_prepare(), placement.models > 0),
            compute=ActorPoolStrategy(
                min_size=least,
                initial_size=placement.preprocess_workers,
                **most,
                max_concurrent_calls_per_actor=_UNITS_AT_ONCE,
                enable_true_multi_threading=True,  # without it one call waits for another
                max_tasks_in_flight_per_actor=_UNITS_AT_ONCE + _WAITING_TASKS,
            ),
            num_cpus=1,
            **_ONE_ROW,
        )
    )


_ONE_ROW: dict[str, Any] = {"batch_size": 1, "batch_format": "pyarrow"}


class _Closed(threading.Event):
    """Set where a source takes in no more. A copy in another process, to which Ray sends its context, is nobody's."""

    def __reduce__(self) -> tuple[type["_Closed"], tuple[()]]:
        return _Closed, ()

    def __deepcopy__(self, _memo: dict[int, Any]) -> "_Closed":
        return self  # every operator of a dataset has a copy of its context


class _Steps(ExecutionCallback):
    """Is called at every step of Ray Data's loop."""

    def __init__(self, closed: _Closed) -> None:
        self._closed = closed

    def on_execution_step(self, executor: object) -> None:
        """End the loop of a source that is closed; delete statistics of blocks, some KB a unit, that nobody reads."""
        # Ray 2.60: no setting turns this off. Where a later one keeps them elsewhere it only costs memory.
        for operator in getattr(executor, "_topology", None) or ():
            getattr(operator, "_output_blocks_stats", []).clear()
        if self._closed.is_set():
            raise ExecutionTimeoutError("closed")  # Ray Data writes on stderr what it raises of other kinds


class _ReadAndPreprocess:
    """Tasks to units of samples: encoded images never leave the actor that decodes them."""

    def __init__(self, plan: BatchPlan, beside_gpus: bool) -> None:
        self._plan = plan
        self._gate = RWLock()
        self._loaded: dict[JobSettings, Preprocess] = {}
        self._watchdog, self._kept = Watchdog(), set[tuple[str, str]]()
        self._files = OpenFiles()
        if beside_gpus:  # an engine's own thread comes first
            os.nice(_LESS_URGENT)

    def __call__(self, batch: Batch) -> Iterator[Batch]:
        tasks: list[Task] = cloudpickle.loads(batch.column("tasks")[0].as_py())
        for task in tasks:
            spent = Spent()
            samples = self._prepare(task, spent)
            with self._gate.shared():  # what kills here must not count for a unit that is alone
                packed = with_keys(pack(task.key, samples, spent), [one.key for one in tasks])
            yield packed

    def _prepare(self, task: Task, spent: Spent) -> pa.Table:
        shard, unit = self._plan.shards[task.key.shard], task.key.unit
        if shard.stoppable and shard.markers.find(STOPPED):
            return NOTHING
        preprocess = self._load(task.key.shard)
        watch = RowWatch(self._watchdog, shard.settings.row_seconds, partial(self._keep, shard.markers.folder))
        guard = Guard("preprocess", shard.markers.of_attempt(task.attempt), preprocess.fail_rows, self._gate, watch)
        with spent.measured(preprocess.waited_s):
            read = spent.reading(task.read.using(self._files))
            return guard(unit, partial(read, unit), partial(preprocess, watch=watch))

    def _keep(self, folder: str, failure: Failure, trace: str) -> None:
        """Put the first traceback of each type in the run folder."""
        name = f"{failure.stage}-{failure.type}"
        if (folder, name) not in self._kept and len(self._kept) < _MOST_TRACES:
            self._kept.add((folder, name))
            keep_trace(folder, name, trace)

    def _load(self, number: int) -> Preprocess:
        """Load what prepares the shard's rows, or return that of another shard which asks in the same way."""
        shard = self._plan.shards[number]
        key = shard.settings.model_copy(update={"input": (), "output": ""})
        if key not in self._loaded:
            with bounded_loading("preprocess", _actor(), shard.markers, self._gate):
                if key not in self._loaded:  # as another thread has meanwhile
                    self._loaded[key] = shard.load_preprocess(shard.settings)
        return self._loaded[key]


def _actor() -> str:
    """Return the name of this actor, which it keeps when its process is restarted."""
    return str(ray.get_runtime_context().get_actor_id())


def _context(closed: _Closed, more_at_once: int) -> DataContext:
    context = DataContext.get_current().copy()
    context.target_max_block_size = 1  # byte: a block is one row, a unit, however large
    context.enable_progress_bars = False
    # Not as many as the backlog of a start would keep busy: once it is done they would have nothing to do.
    context.autoscaling_config.actor_pool_max_upscaling_delta = more_at_once
    context.enable_fallback_to_arrow_object_ext_type = False  # never pickle what should be Arrow
    context.max_errored_blocks = 0
    context.execution_no_progress_timeout_s = -1  # no unit for half an hour is no fault: an engine may wait for its GPU
    context.max_consecutive_actor_init_deaths = 0  # an error while loading is said at once; deaths: quarantine.py
    context._max_num_blocks_in_streaming_gen_buffer = _BLOCKS_OF_A_TASK
    context.custom_execution_callback_classes = [cast("type[ExecutionCallback]", partial(_Steps, closed))]
    return context
