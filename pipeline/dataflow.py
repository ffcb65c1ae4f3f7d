"""read -> preprocess -> generate -> write on Ray Data: the only `import ray`.

A work unit travels as one row {place, payload}, its table as one Arrow stream. Ray may split, merge or reorder blocks
as it likes; a unit stays whole, is generated once and is written under its own name.
"""

import logging
import os
import re
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import ray
from ray.data import ActorPoolStrategy, DataContext, Dataset
from ray.data.exceptions import SystemException

from pipeline.poison import Gate, Guard, RowWatch, bounded_loading
from pipeline.progress import Receipt
from pipeline.stages import Generate, Preprocess, final_answers
from pipeline.units import Counts, count_answers, keep_trace, write_unit
from pipeline.watchdog import Watchdog
from pipeline.work import NOTHING, STOPPED, Batch, Queue, Work, make_receipt, pack, receipt_of, unpack
from schemas.errors import Failure, Refused
from schemas.job import JobSettings

# Places given out by one task: a task each would delay the first unit of a million rows by a minute.
_UNITS_A_READ = 64
_MOST_TRACES = 1000  # that an actor keeps
WORKER_LOGS = "LLAVA_BATCH_WORKER_LOGS"  # set it to see what the actors print


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """How many actors each pool may have; 0 models on GPUs is one on the CPU."""

    preprocess_workers: int
    models: int
    gpus_per_model: int


class RunFailed(RuntimeError):
    """The run could not go on; what is done stays."""


class EngineNotLoaded(RunFailed):
    """No actor could make its engine: nothing that it is asked will be answered."""


@contextmanager
def on_cluster() -> Iterator[None]:
    """On the cluster that RAY_ADDRESS names (a submitted job has it set), else on one that ends with the block."""
    if ray.is_initialized():
        yield
        return
    _quiet_ray()
    if "RAY_ADDRESS" in os.environ:
        ray.init(logging_level=logging.ERROR, log_to_driver=WORKER_LOGS in os.environ)
    else:
        ray.init(
            address="local",
            num_cpus=max(4, os.cpu_count() or 4),  # fewer cannot hold a CPU for every stage
            include_dashboard=False,
            logging_level=logging.ERROR,
            log_to_driver=WORKER_LOGS in os.environ,
        )
    try:
        yield
    finally:
        ray.shutdown()


def place(settings: JobSettings) -> Placement:
    """The pools' sizes on the cluster as it is; see `share_out`."""
    return share_out([node["Resources"] for node in ray.nodes() if node["Alive"]], settings)


def share_out(machines: Sequence[dict[str, float]], settings: JobSettings) -> Placement:
    """The pools' sizes: as set, or every GPU of the machines and the CPUs that are left. Raises ValueError where no
    machine has the GPUs of one model."""
    on_machine = [int(machine.get("GPU", 0)) for machine in machines]
    wanted, each = settings.gpus, settings.gpus_per_model
    if wanted is None and 0 < max(on_machine) < each:  # where a number is asked for, the cluster may yet start more
        raise Refused(f"gpus_per_model must be at most the {max(on_machine)} GPUs of the largest machine, got {each}")
    models = sum(gpus // each for gpus in on_machine) if wanted is None else wanted // each
    spare = int(sum(machine.get("CPU", 0) for machine in machines)) - max(models, 1) - 1
    return Placement(
        models=models, gpus_per_model=each, preprocess_workers=settings.preprocess_workers or max(1, spare)
    )


def run_units(queue: Queue, work: Work, placement: Placement) -> Iterator[Receipt]:
    """Answer these units and yield the receipt of each as it is written, in the order in which they finish.

    Raises RunFailed where an actor could not load or a bug ended the run.
    """
    _set_context()
    dataset = (
        # One reader at a time: it stays as long as its units wait, and must not take the CPU that an actor restarts on.
        ray.data.range(len(queue.units), override_num_blocks=-(-len(queue.units) // _UNITS_A_READ), concurrency=1)
        .map_batches(
            _ReadAndPreprocess,
            fn_constructor_args=(queue, work),
            compute=ActorPoolStrategy(min_size=1, max_size=placement.preprocess_workers, **_several_units(2)),
            num_cpus=1,
            **_ONE_UNIT,
        )
        .map_batches(
            _GenerateAndWrite,
            fn_constructor_args=(queue, work),
            compute=ActorPoolStrategy(size=max(1, placement.models), **_several_units(3)),
            num_gpus=placement.gpus_per_model if placement.models else None,
            num_cpus=1,
            **_ONE_UNIT,
        )
    )
    try:
        for row in dataset.iter_rows():
            _forget_blocks(dataset)
            yield receipt_of(row, queue)
    except ray.exceptions.ActorDiedError as error:
        # It died while it was made: the units of one that dies later are tried again.
        raise EngineNotLoaded(_cause_of(error)) from error
    except ray.exceptions.RayError as error:
        raise RunFailed(_cause_of(error)) from error


def _forget_blocks(dataset: Dataset) -> None:
    """Ray's operators keep statistics of every block they gave out, some KB a unit, for a summary that is not read."""
    # Ray 2.60: no setting turns this off. Where a later one keeps them elsewhere they stay, which only costs memory.
    for operator in getattr(getattr(dataset, "_current_executor", None), "_topology", None) or ():
        getattr(operator, "_output_blocks_stats", []).clear()


def _cause_of(error: BaseException) -> str:
    """The line that a person needs: what was raised in the actor, else what Ray says of the actor's death."""
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
    """An actor works on several units at once, so that it never waits for storage or for the last row of a unit."""
    return {
        "max_concurrent_calls_per_actor": at_once,
        "enable_true_multi_threading": True,  # without it the calls take turns
        "max_tasks_in_flight_per_actor": 2 * at_once,
    }


class _ReadAndPreprocess:
    """Places to units of samples: encoded images never leave the actor that decodes them."""

    def __init__(self, queue: Queue, work: Work) -> None:
        self._queue, self._parts = queue, work.parts
        self._loading, self._gate = threading.Lock(), Gate()
        self._loaded: dict[JobSettings, Preprocess] = {}
        self._watchdog, self._kept = Watchdog(), set[tuple[int, str]]()

    def __call__(self, batch: Batch) -> Batch:
        place = batch.column("id")[0].as_py()
        number, unit = int(self._queue.parts[place]), int(self._queue.units[place])
        part = self._parts[number]
        if part.stoppable and part.markers.find(STOPPED):
            return pack(place, NOTHING)
        preprocess = self._load(number)
        watch = RowWatch(self._watchdog, part.settings.row_seconds, partial(self._keep, number))
        guard = Guard("preprocess", part.markers, preprocess.give_up, self._gate, watch)
        return pack(place, guard(unit, partial(part.read, unit), partial(preprocess, watch=watch)))

    def _keep(self, number: int, failure: Failure, trace: str) -> None:
        """Put the first traceback of each type in the part's folder."""
        name = f"{failure.stage}-{failure.type}"
        if (number, name) not in self._kept and len(self._kept) < _MOST_TRACES:
            self._kept.add((number, name))
            keep_trace(self._parts[number].markers.folder, name, trace)

    def _load(self, number: int) -> Preprocess:
        """The part's own way of preparing, or that of another which asks in the same way."""
        part = self._parts[number]
        key = part.settings.model_copy(update={"input": (), "output": ""})
        with self._loading:
            if key not in self._loaded:
                with bounded_loading("preprocess", _actor(), part.markers):
                    self._loaded[key] = part.load_preprocess(part.settings)
            return self._loaded[key]


class _GenerateAndWrite:
    """Units of samples to receipts: a unit's answers are in place before anybody hears of it."""

    def __init__(self, queue: Queue, work: Work) -> None:
        self._queue, self._parts = queue, work.parts
        self._gate = Gate()
        with bounded_loading("generate", _actor(), work.parts[0].markers):
            self._generate = Generate(work.settings, work.load_engine)

    def __call__(self, batch: Batch) -> Batch:
        place, samples = unpack(batch)
        if not samples.num_columns:
            return make_receipt(place, Counts(), 0.0, worker=_actor(), engine=self._generate.statistics())
        part, unit = self._parts[self._queue.parts[place]], int(self._queue.units[place])
        guard = Guard("generate", part.markers, self._generate.give_up, self._gate)
        with self._generate.drawing(part.settings):
            began = time.monotonic()
            answers = final_answers(guard(unit, lambda _: samples, self._generate))
        write_unit(part.folder, part.run, unit, answers)
        seconds, engine = time.monotonic() - began, self._generate.statistics()
        return make_receipt(place, count_answers(answers), seconds, worker=_actor(), engine=engine)


def _actor() -> str:
    """The name of this actor, which it keeps when its process is restarted."""
    return str(ray.get_runtime_context().get_actor_id())


def _quiet_ray() -> None:
    """Leave stderr to the job's own lines; Ray's are in its session folder, and its errors are raised."""
    logging.getLogger("ray").setLevel(logging.ERROR)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # every actor pool logs an error about its arguments


def _set_context() -> None:
    context = DataContext.get_current()
    context.target_max_block_size = 1  # byte: a block is one row, a unit, however large
    context.enable_progress_bars = False
    context.enable_fallback_to_arrow_object_ext_type = False  # never pickle what should be Arrow
    context.max_errored_blocks = 0
    context.max_consecutive_actor_init_deaths = 0  # an error while loading is said at once; for deaths see poison.py
