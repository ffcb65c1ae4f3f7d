"""read -> preprocess -> generate -> write on Ray Data: the only `import ray`.

A work unit travels as one row {index, payload}, its table as one Arrow stream. Ray may split, merge or reorder blocks
as it likes; a unit stays whole, is generated once and is written under its own name.
"""

import logging
import os
import re
import secrets
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from traceback import walk_tb
from types import TracebackType
from typing import Any

import ray
from ray.autoscaler.v2.sdk import get_cluster_status
from ray.data import ActorPoolStrategy, DataContext, Dataset
from ray.data.exceptions import SystemException

from pipeline.environment import (
    check_wait,
    cluster_address,
    cpus_here,
    object_store_folder,
    socket_folder,
)
from pipeline.execution.cluster_watch import (
    ClusterLost,
    Part,
    Watch,
    Wishes,
    is_there,
    num_losses,
    wait_for_head,
    watched,
)
from pipeline.execution.placement import Load, Placement, describe_wait, share_out
from pipeline.execution.progress import UnitReport
from pipeline.execution.quarantine import Guard, RowWatch, bounded_loading
from pipeline.execution.watchdog import Watchdog
from pipeline.execution.work_units import (
    NOTHING,
    STOPPED,
    Batch,
    BatchPlan,
    Shard,
    pack,
    read_report,
    report_unit,
    unpack,
)
from pipeline.run_folder.units import Counts, count_answers, keep_trace, write_unit
from pipeline.stages.generate import Generate, final_answers
from pipeline.stages.locks import RWLock
from pipeline.stages.preprocess import Preprocess
from pipeline.storage.options import given_options
from schemas.errors import Failure, Refused
from schemas.job import JobSettings
from schemas.wording import one_line

# Units given out by one task: a task each would delay the first unit of a million rows by a minute.
_UNITS_A_READ = 64
_MOST_TRACES = 1000  # that an actor keeps
CPUS_OF_A_JOB = 3  # to read, to preprocess and to generate; of a Ray of our own they are only numbers
_STILL_ASKING_S = 2.0
_JOIN_AGAIN_S = 3.0
_STORE_ON_DISK = 2**30  # bytes of the object store where there is no shared memory

_STARTS = 3  # of a run whose actors Ray takes back before they ran; and of a Ray that is too slow to start


class RunFailed(RuntimeError):
    """The run could not go on; what is done stays."""


class EngineNotLoaded(RunFailed):
    """No actor could make its engine: nothing that it is asked will be answered."""


@contextmanager
def on_cluster(wishes: Wishes, release: Callable[[], None]) -> Iterator[Watch]:
    """Join the cluster that RAY_ADDRESS names (a submitted job has it set), else start one that ends with the block.

    Raises ClusterLost where it goes away; `release` is called where the process has to be ended then.
    """
    if ray.is_initialized():
        yield Watch(parts=(), release=release)
        return
    check_wait(wishes.wait_s)
    _quiet_ray(wishes.worker_logs)
    try:
        if address := cluster_address():
            _join(address, wishes)
        else:
            _start(wishes)
        with watched(Watch(parts=_needed(), release=release, wait_s=wishes.wait_s)) as watch:
            try:
                yield watch
            except (RuntimeError, OSError, ray.exceptions.RayError) as error:
                watch.check(error)
                raise
            finally:
                watch.leave()
                ray.shutdown()
    finally:
        ray.shutdown()


def _needed() -> list[Part]:
    """Return the processes without which this driver cannot go on, of those that it can reach by itself."""
    address = cluster_address() or ""
    if address.startswith("ray://"):
        return [part for part in [_part("its Ray client's server", address.removeprefix("ray://"))] if is_there(part)]
    context = ray.get_runtime_context()
    parts = [_part("its head (gcs_server)", context.gcs_address)]
    for node in ray.nodes():
        if node["NodeID"] == context.get_node_id():
            host, port = node["NodeManagerAddress"], node["NodeManagerPort"]
            parts.append(_part("this machine's raylet", f"{host}:{port}"))
    return [part for part in parts if is_there(part)]


def _part(what: str, address: str) -> Part:
    host, _, port = address.split("/")[0].rpartition(":")
    return Part(what=what, host=host.strip("[]"), port=int(port))


def _join(address: str, wishes: Wishes) -> None:
    """Join a cluster. Raises Refused where there is none in time, or none that lets us in; ClusterLost where it was
    there before."""
    until = time.monotonic() + wishes.wait_s
    wait_for_head(wishes.wait_s)
    while True:
        try:
            with _stderr_hidden():
                options = {"env_vars": given} if (given := given_options()) else None
                ray.init(logging_level=logging.ERROR, log_to_driver=wishes.worker_logs, runtime_env=options)
        except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
            if time.monotonic() >= until and num_losses():
                lost = f"the cluster that was lost has not come back to {address} within {wishes.wait_s:g} s"
                raise ClusterLost(f"{lost}: {one_line(error)}") from error
            if time.monotonic() >= until:
                raise Refused(f"RAY_ADDRESS {address} cannot be joined: {one_line(error)}") from error
            time.sleep(_JOIN_AGAIN_S)  # its head is up before its raylet
        else:
            return


def _start(wishes: Wishes) -> None:
    """Start a Ray of this process's own that takes no more than there is, and leaves nothing in HOME."""
    os.environ.pop("RAY_ADDRESS", None)  # empty, or `local`
    if "RAY_AUTH_TOKEN_PATH" not in os.environ:  # Ray would write a token to HOME, and the next Ray there would use it
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    folder = socket_folder()
    objects = object_store_folder(folder)
    for tries_left in reversed(range(_STARTS)):
        with StartFailures(folder, tries_left), _stderr_hidden():
            started = ray.init(
                address="local",
                num_cpus=max(CPUS_OF_A_JOB, cpus_here()),
                include_dashboard=wishes.dashboard,
                logging_level=logging.ERROR,
                log_to_driver=wishes.worker_logs,
                object_store_memory=_STORE_ON_DISK if objects else None,
                _plasma_directory=objects,
                _temp_dir=folder,
            )
            break
        sys.stderr.write("Ray has not started in its time, this machine is busy: once more\n")
    if wishes.dashboard:
        sys.stderr.write(f"dashboard http://{started.dashboard_url}\n")


class StartFailures(AbstractContextManager[None, bool]):
    """Turns what Ray raises where it does not start into RunFailed; a start that took too long passes while tries are
    left."""

    def __init__(self, folder: str, tries_left: int = 0) -> None:
        self._folder = folder
        self._tries_left = tries_left

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        took_too_long = kind is Exception  # Ray 2.60 gives its own processes 30 s, then raises just this
        if error is None or not (took_too_long or isinstance(error, OSError | RuntimeError | ValueError)):
            return False
        if not (took_too_long and self._tries_left):
            raise RunFailed(f"Ray did not start, its logs are below {self._folder}: {one_line(error)}") from error
        for frame, _ in walk_tb(trace):
            if (end := getattr(frame.f_locals.get("self"), "kill_all_processes", None)) is not None:  # Ray's Node
                end(check_alive=False, allow_graceful=True)
        return True


@contextmanager
def _stderr_hidden() -> Iterator[None]:
    """Keep from the terminal what Ray's C++ writes before it has a log file: that it has read its log level."""
    try:
        kept = os.dup(2)
    except OSError:  # closed
        yield
        return
    sys.stderr.flush()
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def plan_placement(settings: JobSettings, load: Load) -> Placement:
    """Return the pools' sizes on the cluster as it is; see `share_out`."""
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return share_out(machines, settings, load, may_grow=_may_grow())


def _may_grow() -> bool:
    """Return whether somebody adds machines to this cluster when they are asked for."""
    if "RAY_NODE_TYPE_NAME" in os.environ:  # set on machines that Ray's launcher and KubeRay start
        return True
    try:
        status = get_cluster_status(ray.get_runtime_context().gcs_address)
    except ray.exceptions.RayError:  # it does not say: who waits is told for what
        return True
    types = [node.ray_node_type_name for node in (*status.active_nodes, *status.idle_nodes, *status.pending_nodes)]
    return any(not name.startswith("node_") for name in types)  # a type that no launcher has named


@contextmanager
def said_while_waiting(placement: Placement, say: Callable[[str], None], every_s: float = 30.0) -> Iterator[None]:
    """Say every so often what a job asks for and what there is, as long as that is less or nothing is to spare."""
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(every_s):
            say(describe_wait(placement, ray.cluster_resources(), ray.available_resources()))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(_STILL_ASKING_S)  # a cluster that has gone away does not answer


def run_units(plan: BatchPlan, placement: Placement) -> Iterator[UnitReport]:
    """Answer these units and yield the report of each as it is written, in the order in which they finish.

    Raises RunFailed where an actor could not load or a bug ended the run. An actor that Ray took back before it ran,
    as a cluster does that is only just there, is asked for again as long as nothing has come.
    """
    for tries_left in reversed(range(_STARTS)):
        started = False
        try:
            with DataContext.current(_context()):  # a dataset keeps it; the process's own may serve others
                dataset = _dataset(plan, placement)
            for row in dataset.iter_rows():
                started = True
                _forget_blocks(dataset)
                yield read_report(row, plan)
        except ray.exceptions.ActorDiedError as error:
            # It died while it was made: the units of one that dies later are tried again.
            if started or not tries_left or not never_ran(error):
                raise EngineNotLoaded(_cause_of(error)) from error
        except ray.exceptions.RayError as error:
            raise RunFailed(_cause_of(error)) from error
        else:
            return


def _dataset(plan: BatchPlan, placement: Placement) -> Dataset:
    return (
        # One reader at a time: it stays as long as its units wait, and must not take the CPU that an actor restarts on.
        ray.data.range(len(plan.units), override_num_blocks=-(-len(plan.units) // _UNITS_A_READ), concurrency=1)
        .map_batches(
            _ReadAndPreprocess,
            fn_constructor_args=(plan,),
            compute=ActorPoolStrategy(min_size=1, max_size=placement.preprocess_workers, **_several_units(2)),
            num_cpus=1,
            **_ONE_UNIT,
        )
        .map_batches(
            _GenerateAndWrite,
            fn_constructor_args=(plan,),
            compute=ActorPoolStrategy(size=max(1, placement.models), **_several_units(placement.units_per_model)),
            num_gpus=placement.gpus_per_model if placement.models else None,
            num_cpus=1,
            **_ONE_UNIT,
        )
    )


def never_ran(error: BaseException) -> bool:
    """Return whether an actor died without a process that could have failed: nothing was loaded yet."""
    return "The actor never ran" in str(error)


def _forget_blocks(dataset: Dataset) -> None:
    """Delete the statistics that Ray's operators keep of every block, some KB a unit, for a summary that is not
    read."""
    # Ray 2.60: no setting turns this off. Where a later one keeps them elsewhere they stay, which only costs memory.
    for operator in getattr(getattr(dataset, "_current_executor", None), "_topology", None) or ():
        getattr(operator, "_output_blocks_stats", []).clear()


def _cause_of(error: BaseException) -> str:
    """Return the line that a person needs: what was raised in the actor, else what Ray says of the actor's death."""
    texts = [str(error)]
    while error.__cause__ is not None and not isinstance(error.__cause__, SystemException):
        error = error.__cause__
        texts.append(str(error))
    lines = [line.strip() for text in texts for line in text.splitlines() if line.strip()]
    raised = [line for line in lines if _RAISED.match(line)]
    return (raised or lines or [type(error).__name__])[-1]


_RAISED = re.compile(r"(?!ray\.)[\w.]+(Error|Exception|Unit|Refused): ")  # the last line of a traceback


_ONE_UNIT: dict[str, Any] = {"batch_size": 1, "batch_format": "pyarrow"}


def _several_units(at_once: int) -> dict[str, Any]:
    """Return the options by which an actor works on several units at once: it never waits for storage or for a last
    row."""
    return {
        "max_concurrent_calls_per_actor": at_once,
        "enable_true_multi_threading": True,  # without it one call waits for another
        "max_tasks_in_flight_per_actor": at_once + 2,  # the next ones are there before they are asked for
    }


class _ReadAndPreprocess:
    """Indices to units of samples: encoded images never leave the actor that decodes them."""

    def __init__(self, plan: BatchPlan) -> None:
        self._plan = plan
        self._loading, self._gate = threading.Lock(), RWLock()
        self._loaded: dict[JobSettings, Preprocess] = {}
        self._watchdog, self._kept = Watchdog(), set[tuple[str, str]]()

    def __call__(self, batch: Batch) -> Batch:
        index = batch.column("id")[0].as_py()
        shard, unit = self._plan.unit_at(index)
        if shard.stoppable and shard.markers.find(STOPPED):
            return pack(index, NOTHING)
        preprocess = self._load(shard)
        watch = RowWatch(self._watchdog, shard.settings.row_seconds, partial(self._keep, shard.markers.folder))
        guard = Guard("preprocess", shard.markers, preprocess.fail_rows, self._gate, watch)
        return pack(index, guard(unit, partial(shard.read, unit), partial(preprocess, watch=watch)))

    def _keep(self, folder: str, failure: Failure, trace: str) -> None:
        """Put the first traceback of each type in the run folder."""
        name = f"{failure.stage}-{failure.type}"
        if (folder, name) not in self._kept and len(self._kept) < _MOST_TRACES:
            self._kept.add((folder, name))
            keep_trace(folder, name, trace)

    def _load(self, shard: Shard) -> Preprocess:
        """Load what prepares the shard's rows, or return that of another shard which asks in the same way."""
        key = shard.settings.model_copy(update={"input": (), "output": ""})
        with self._loading:
            if key not in self._loaded:
                with bounded_loading("preprocess", _actor(), shard.markers):
                    self._loaded[key] = shard.load_preprocess(shard.settings)
            return self._loaded[key]


class _GenerateAndWrite:
    """Units of samples to reports: a unit's answers are written before anybody hears of it."""

    def __init__(self, plan: BatchPlan) -> None:
        self._plan = plan
        self._gate = RWLock()
        self._life = uuid.uuid4().hex  # of this process: a restarted actor counts from nothing
        with bounded_loading("generate", _actor(), plan.shards[0].markers):
            self._generate = Generate(plan.settings, plan.load_engine)

    def __call__(self, batch: Batch) -> Batch:
        index, samples = unpack(batch)
        if not samples.num_columns:
            return report_unit(index, Counts(), 0.0, worker=self._life, engine=self._generate.statistics())
        shard, unit = self._plan.unit_at(index)
        guard = Guard("generate", shard.markers, self._generate.fail_rows, self._gate)
        with self._generate.sampling(shard.settings):
            began = time.monotonic()
            answers = final_answers(guard(unit, lambda _: samples, self._generate))
        write_unit(shard.folder, shard.run, unit, answers)
        seconds, engine = time.monotonic() - began, self._generate.statistics()
        return report_unit(index, count_answers(answers), seconds, worker=self._life, engine=engine)


def _actor() -> str:
    """Return the name of this actor, which it keeps when its process is restarted."""
    return str(ray.get_runtime_context().get_actor_id())


def _quiet_ray(worker_logs: bool) -> None:
    """Leave stderr to the job's own lines; Ray's are in its session folder, and its errors are raised."""
    logging.getLogger("ray").setLevel(logging.ERROR)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # every actor pool logs an error about its arguments
    # Ray 2.60 prints what the cluster's processes report, as a raylet's last words, on stdout unless this says no.
    ray._private.worker._worker_logs_enabled = worker_logs


def _context() -> DataContext:
    context = DataContext.get_current().copy()
    context.target_max_block_size = 1  # byte: a block is one row, a unit, however large
    context.enable_progress_bars = False
    context.enable_fallback_to_arrow_object_ext_type = False  # never pickle what should be Arrow
    context.max_errored_blocks = 0
    context.max_consecutive_actor_init_deaths = (
        0  # an error while loading is said at once; for deaths see quarantine.py
    )
    return context
