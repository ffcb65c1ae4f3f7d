"""Work units: which of them an engine answers, and how one travels: its table as one row {index, payload}."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.execution.progress import UnitReport
from pipeline.run_folder.markers import Markers
from pipeline.run_folder.units import Counts, ErrorType
from pipeline.sources.reader import UnitReader
from pipeline.stages.generate import Engine
from pipeline.stages.preprocess import Preprocess
from pipeline.storage import filesystem as fs
from schemas.engine import EngineStatistics
from schemas.job import JobSettings
from schemas.sample import binary_views

Batch: TypeAlias = pa.Table  # one row of UNIT_SCHEMA
UNIT_SCHEMA = pa.schema(
    [pa.field("index", pa.int64(), nullable=False), pa.field("payload", pa.large_binary(), nullable=False)]
)
STOPPED = "stopped"  # the marker of a shard that is given up
NOTHING = pa.table({})  # instead of the samples of a unit that is passed over


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """Units of one run: how they are read and prepared, and where their answers go."""

    settings: JobSettings
    read: UnitReader
    load_preprocess: Callable[[JobSettings], Preprocess]
    folder: str  # units/ is below it
    run: str
    markers: Markers
    stoppable: bool = False  # whether its units are to be passed over once the marker STOPPED is there


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BatchPlan:
    """Units that one engine answers: those of its shards, in order. The unit at an index is `units[index]` of the shard
    `shards[shard_of[index]]`."""

    load_engine: Callable[[JobSettings], Engine]
    shards: tuple[Shard, ...]
    shard_of: npt.NDArray[np.int64]
    units: npt.NDArray[np.int64]

    @classmethod
    def of(
        cls,
        shards: Sequence[Shard],
        units_of_shards: Sequence[Sequence[int]],
        load_engine: Callable[[JobSettings], Engine],
    ) -> "BatchPlan":
        """Return the plan with all units of the first shard, then all of the next.

        Their folders are whole paths in it: the workers of a Ray that is there already may be in another one.
        """
        lengths = [len(units) for units in units_of_shards]
        units = np.concatenate([np.asarray(units, np.int64) for units in units_of_shards])
        shard_of = np.repeat(np.arange(len(lengths)), lengths)
        return cls(
            load_engine=load_engine, shards=tuple(map(_with_whole_paths, shards)), shard_of=shard_of, units=units
        )

    @property
    def settings(self) -> JobSettings:
        """Return the settings that the engine is loaded by: all shards have the same of these."""
        return self.shards[0].settings

    def unit_at(self, index: int) -> tuple[Shard, int]:
        """Return the unit at an index, and its shard."""
        return self.shards[self.shard_of[index]], int(self.units[index])


def _with_whole_paths(shard: Shard) -> Shard:
    markers = replace(shard.markers, folder=fs.absolute(shard.markers.folder))
    return replace(shard, folder=fs.absolute(shard.folder), markers=markers)


def report_unit(index: int, counts: Counts, seconds: float, *, worker: str, engine: EngineStatistics) -> pa.Table:
    """Return what Ray carries of a unit once its answers are written."""
    row = {"index": index, "seconds": seconds, "worker": worker, "engine": json.dumps(asdict(engine)), **asdict(counts)}
    return pa.Table.from_pylist([row], schema=_REPORT)


_REPORT = pa.schema(
    [
        pa.field("index", pa.int64()),
        pa.field("seconds", pa.float64()),
        pa.field("worker", pa.string()),
        pa.field("engine", pa.string()),  # EngineStatistics as JSON
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


def read_report(row: dict[str, Any], plan: BatchPlan) -> UnitReport:
    """Return a row of `report_unit` as a record."""
    counts = Counts(rows=row["rows"], errors=row["errors"], by_type=tuple(map(_as_type, row["by_type"])))
    return UnitReport(
        shard=int(plan.shard_of[row["index"]]),
        unit=int(plan.units[row["index"]]),
        counts=counts,
        seconds=row["seconds"],
        worker=row["worker"],
        engine=EngineStatistics(**json.loads(row["engine"])),
    )


def _as_type(row: dict[str, Any]) -> ErrorType:
    return ErrorType(**{**row, "examples": tuple(row["examples"])})


def pack(index: int, table: pa.Table) -> Batch:
    """Return one row of UNIT_SCHEMA that holds the whole table."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    stream = sink.getvalue()
    offsets = pa.py_buffer(np.array([0, stream.size], np.int64))
    payload = pa.LargeBinaryArray.from_buffers(pa.large_binary(), 1, [None, offsets, stream])
    return pa.table([pa.array([index], pa.int64()), payload], schema=UNIT_SCHEMA)


def unpack(batch: Batch) -> tuple[int, pa.Table]:
    """Return the unit's index and its table, a view of the batch's memory."""
    if batch.num_rows != 1:
        raise RuntimeError(f"a batch must be one work unit, got {batch.num_rows}")
    (payload,) = binary_views(batch.column("payload"))
    return batch.column("index")[0].as_py(), pa.ipc.open_stream(payload).read_all()
