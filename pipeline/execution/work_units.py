"""Work: which units of which runs an engine answers, and how a unit travels: its table as one row {place, payload}."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.execution.progress import Receipt
from pipeline.run_folder.markers import Markers
from pipeline.run_folder.units import Counts, ErrorType
from pipeline.sources.reader import UnitReader
from pipeline.stages.generate import Engine
from pipeline.stages.preprocess import Preprocess
from schemas.engine import EngineStatistics
from schemas.job import JobSettings
from schemas.sample import binary_views

Batch: TypeAlias = pa.Table  # one row of UNIT_SCHEMA
UNIT_SCHEMA = pa.schema(
    [pa.field("place", pa.int64(), nullable=False), pa.field("payload", pa.large_binary(), nullable=False)]
)
STOPPED = "stopped"  # the marker of a part that is given up
NOTHING = pa.table({})  # in place of the samples of a unit that is passed over


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Units of one run: how they are read and prepared, and where their answers go."""

    settings: JobSettings
    read: UnitReader
    load_preprocess: Callable[[JobSettings], Preprocess]
    folder: str  # units/ is below it
    run: str
    markers: Markers
    stoppable: bool = False  # whether its units are to be passed over once the marker STOPPED is there


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What the actors are told: the runs that one engine answers for."""

    settings: JobSettings  # the engine's
    load_engine: Callable[[JobSettings], Engine]
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Queue:
    """The units to answer, in order, by their place: unit `units[place]` of part `parts[place]`."""

    parts: npt.NDArray[np.int64]
    units: npt.NDArray[np.int64]

    @classmethod
    def of(cls, units_of_parts: Sequence[Sequence[int]]) -> "Queue":
        """All units of the first part, then all of the next."""
        lengths = [len(units) for units in units_of_parts]
        units = np.concatenate([np.asarray(units, np.int64) for units in units_of_parts])
        return cls(parts=np.repeat(np.arange(len(lengths)), lengths), units=units)


def make_receipt(place: int, counts: Counts, seconds: float, *, worker: str, engine: EngineStatistics) -> pa.Table:
    """What is left of a unit once its answers are in place."""
    row = {"place": place, "seconds": seconds, "worker": worker, "engine": json.dumps(asdict(engine)), **asdict(counts)}
    return pa.Table.from_pylist([row], schema=_RECEIPT)


_RECEIPT = pa.schema(
    [
        pa.field("place", pa.int64()),
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


def receipt_of(row: dict[str, Any], queue: Queue) -> Receipt:
    """A row of receipts as a record."""
    counts = Counts(rows=row["rows"], errors=row["errors"], by_type=tuple(map(_as_type, row["by_type"])))
    place = row["place"]
    return Receipt(
        part=int(queue.parts[place]),
        unit=int(queue.units[place]),
        counts=counts,
        seconds=row["seconds"],
        worker=row["worker"],
        engine=EngineStatistics(**json.loads(row["engine"])),
    )


def _as_type(row: dict[str, Any]) -> ErrorType:
    return ErrorType(**{**row, "examples": tuple(row["examples"])})


def pack(place: int, table: pa.Table) -> Batch:
    """One row of UNIT_SCHEMA that holds the whole table."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    stream = sink.getvalue()
    offsets = pa.py_buffer(np.array([0, stream.size], np.int64))
    payload = pa.LargeBinaryArray.from_buffers(pa.large_binary(), 1, [None, offsets, stream])
    return pa.table([pa.array([place], pa.int64()), payload], schema=UNIT_SCHEMA)


def unpack(batch: Batch) -> tuple[int, pa.Table]:
    """The unit's place and its table, a view of the batch's memory."""
    if batch.num_rows != 1:
        raise RuntimeError(f"a batch must be one work unit, got {batch.num_rows}")
    (payload,) = binary_views(batch.column("payload"))
    return batch.column("place")[0].as_py(), pa.ipc.open_stream(payload).read_all()
