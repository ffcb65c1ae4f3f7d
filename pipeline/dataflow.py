"""read -> preprocess -> generate -> write on Ray Data: the only `import ray`.

A work unit travels as one row {unit, payload}: its table as one Arrow stream. Ray may split, merge or reorder blocks as
it likes; a unit stays whole, is generated once and is written under its own name.
"""

import logging
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, DataContext
from ray.data.exceptions import SystemException

from pipeline.patience import patiently
from pipeline.poison import Guard, Markers, bounded_loading
from pipeline.reader import UnitReader
from pipeline.stages import Engine, Generate, Preprocess, final_answers
from pipeline.units import Counts, ErrorType, count_answers, write_unit
from schemas.job import JobSettings
from schemas.sample import binary_views

Batch: TypeAlias = pa.Table  # one row of UNIT_SCHEMA
UNIT_SCHEMA = pa.schema(
    [pa.field("unit", pa.int64(), nullable=False), pa.field("payload", pa.large_binary(), nullable=False)]
)
_UNITS_A_READ = (
    64  # numbers given out by one task: a task each would delay the first unit of a million rows by a minute
)
WORKER_LOGS = "LLAVA_BATCH_WORKER_LOGS"  # set it to see what the actors print


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """How many actors each pool may have; `gpus` 0 is one engine on the CPU."""

    preprocess_workers: int
    gpus: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What the actors are told: how a unit is read, prepared and answered, and where its answers go."""

    settings: JobSettings
    read: UnitReader
    load_preprocess: Callable[[JobSettings], Preprocess]
    load_engine: Callable[[JobSettings], Engine]
    folder: str  # units/ is below it
    run: str
    markers: Markers


class RunFailed(RuntimeError):
    """The run could not go on; what is done stays."""


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
    """The pools' sizes: as set, or every GPU of the cluster and the CPUs that are left."""
    resources = ray.cluster_resources()
    gpus = settings.gpus if settings.gpus is not None else int(resources.get("GPU", 0))
    spare = int(resources.get("CPU", 1)) - max(gpus, 1) - 1
    return Placement(gpus=gpus, preprocess_workers=settings.preprocess_workers or max(1, spare))


def run_units(units: Sequence[int], work: Work, placement: Placement) -> Iterator[Counts]:
    """Answer these units and yield the counts of each as it is written, in the order in which they finish.

    Raises RunFailed where an actor could not load or a bug ended the run.
    """
    _set_context()
    dataset = (
        # One reader at a time: it stays as long as its units wait, and must not take the CPU that an actor restarts on.
        ray.data.range(len(units), override_num_blocks=-(-len(units) // _UNITS_A_READ), concurrency=1)
        .map_batches(
            _ReadAndPreprocess,
            fn_constructor_args=(np.asarray(units), work),
            compute=ActorPoolStrategy(min_size=1, max_size=placement.preprocess_workers, **_several_units(2)),
            num_cpus=1,
            **_ONE_UNIT,
        )
        .map_batches(
            _GenerateAndWrite,
            fn_constructor_args=(work,),
            compute=ActorPoolStrategy(size=max(1, placement.gpus), **_several_units(3)),
            num_gpus=1 if placement.gpus else None,
            num_cpus=1,
            **_ONE_UNIT,
        )
    )
    try:
        for row in dataset.iter_rows():
            yield Counts(rows=row["rows"], errors=row["errors"], by_type=tuple(map(_as_type, row["by_type"])))
    except ray.exceptions.RayError as error:
        raise RunFailed(_cause_of(error)) from error


def _cause_of(error: BaseException) -> str:
    """The line that a person needs: what was raised in the actor, else what Ray says of the actor's death."""
    texts = [str(error)]
    while error.__cause__ is not None and not isinstance(error.__cause__, SystemException):
        error = error.__cause__
        texts.append(str(error))
    lines = [line.strip() for text in texts for line in text.splitlines() if line.strip()]
    raised = [line for line in lines if _RAISED.match(line)]
    return (raised or lines or [type(error).__name__])[-1]


_RAISED = re.compile(r"(?!ray\.)[\w.]+(Error|Exception|Unit): ")  # the last line of a traceback


_ONE_UNIT: dict[str, Any] = {"batch_size": 1, "batch_format": "pyarrow"}


def _several_units(at_once: int) -> dict[str, Any]:
    """An actor works on several units at once, so that it never waits for storage or for the last row of a unit."""
    return {
        "max_concurrent_calls_per_actor": at_once,
        "enable_true_multi_threading": True,  # without it the calls take turns
        "max_tasks_in_flight_per_actor": 2 * at_once,
    }


class _ReadAndPreprocess:
    """Unit numbers to units of samples: encoded images never leave the actor that decodes them."""

    def __init__(self, units: npt.NDArray[np.int64], work: Work) -> None:
        self._units = units
        self._read = work.read
        with bounded_loading("preprocess", _actor(), work.markers):
            self._preprocess = work.load_preprocess(work.settings)
        self._guard = Guard("preprocess", work.markers, self._preprocess.give_up)

    def __call__(self, batch: Batch) -> Batch:
        unit = int(self._units[batch.column("id")[0].as_py()])
        return pack(unit, self._guard(unit, partial(self._read, unit), self._preprocess))


class _GenerateAndWrite:
    """Units of samples to receipts: a unit's answers are in place before anybody hears of it."""

    def __init__(self, work: Work) -> None:
        self._folder, self._run = work.folder, work.run
        with bounded_loading("generate", _actor(), work.markers):
            self._generate = Generate(work.settings, work.load_engine)
        self._guard = Guard("generate", work.markers, self._generate.give_up)

    def __call__(self, batch: Batch) -> Batch:
        unit, samples = unpack(batch)
        answers = final_answers(self._guard(unit, lambda _: samples, self._generate))
        patiently(lambda: write_unit(self._folder, self._run, unit, answers))
        return _receipt(count_answers(answers))


def _actor() -> str:
    """The name of this actor, which it keeps when its process is restarted."""
    return str(ray.get_runtime_context().get_actor_id())


def _receipt(counts: Counts) -> pa.Table:
    by_type = [asdict(one) for one in counts.by_type]
    return pa.table({"rows": [counts.rows], "errors": [counts.errors], "by_type": [by_type]}, schema=_RECEIPT)


_RECEIPT = pa.schema(
    [
        pa.field("rows", pa.int64()),
        pa.field("errors", pa.int64()),
        pa.field(
            "by_type",
            pa.list_(
                pa.struct(
                    [
                        ("stage", pa.string()),
                        ("type", pa.string()),
                        ("rows", pa.int64()),
                        ("examples", pa.list_(pa.string())),
                    ]
                )
            ),
        ),
    ]
)


def _as_type(row: dict[str, Any]) -> ErrorType:
    return ErrorType(**{**row, "examples": tuple(row["examples"])})


def pack(unit: int, table: pa.Table) -> Batch:
    """One row of UNIT_SCHEMA that holds the whole table."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    stream = sink.getvalue()
    offsets = pa.py_buffer(np.array([0, stream.size], np.int64))
    payload = pa.LargeBinaryArray.from_buffers(pa.large_binary(), 1, [None, offsets, stream])
    return pa.table([pa.array([unit], pa.int64()), payload], schema=UNIT_SCHEMA)


def unpack(batch: Batch) -> tuple[int, pa.Table]:
    """The unit's number and its table, a view of the batch's memory."""
    if batch.num_rows != 1:
        raise RuntimeError(f"a batch must be one work unit, got {batch.num_rows}")
    (payload,) = binary_views(batch.column("payload"))
    return batch.column("unit")[0].as_py(), pa.ipc.open_stream(payload).read_all()


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
