"""Work units: which of them an engine answers, and how one travels: as a task to where it is read and prepared, then
its samples as one row {shard, unit, seconds, input_share, payload}."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.run_folder.lock import Lock, still_holds
from pipeline.run_folder.markers import Markers
from pipeline.run_folder.units import write_unit
from pipeline.sources.open_files import OpenFiles
from pipeline.sources.reader import UnitReader
from pipeline.stages.generate import Engine
from pipeline.stages.preprocess import Preprocess
from pipeline.storage import filesystem as fs
from schemas.errors import Failure
from schemas.job import JobSettings
from schemas.sample import SAMPLE_SCHEMA, binary_views

Batch: TypeAlias = pa.Table  # one row of UNIT_SCHEMA
UNIT_SCHEMA = pa.schema(
    [
        pa.field("shard", pa.int64(), nullable=False),
        pa.field("unit", pa.int64(), nullable=False),
        pa.field("seconds", pa.float64(), nullable=False),  # that its preparation took
        pa.field("input_share", pa.float64(), nullable=False),  # of that, reading and fetching; the rest is work
        pa.field("payload", pa.large_binary(), nullable=False),  # the table, less the tiles that are beside it
        pa.field("tiles", pa.large_binary()),
    ]
)
_TILES = SAMPLE_SCHEMA.field("tiles")
STOPPED = "stopped"  # the marker of a shard that is given up
_KEYS = b"units"
NOTHING = pa.table({})  # instead of the samples of a unit that is passed over


@dataclass(frozen=True, slots=True, kw_only=True)
class Owned:
    """A folder's lock, and who must hold it."""

    url: str
    token: str

    @classmethod
    def of(cls, lock: Lock) -> "Owned":
        """Return what workers are told of a lock that their driver holds."""
        return cls(url=lock.url, token=lock.owner.token)

    def check(self) -> None:
        """Raise RuntimeError where another has it, or nobody: this worker was given up, and its folder may be merged
        by now."""
        if not still_holds(self.url, self.token):
            raise RuntimeError(f"{self.url} is no more this worker's driver's: its unit is not written")


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """Units of one run: how they are read and prepared, and where their answers go."""

    settings: JobSettings
    read: UnitReader
    load_preprocess: Callable[[JobSettings], Preprocess]
    folder: str  # units/ is below it
    run: str
    markers: Markers
    lock: Owned  # that the driver holds while units are written: of the run, or of the sweep that it is in
    stoppable: bool = False  # whether its units are to be passed over once the marker STOPPED is there

    def write(self, unit: int, answers: pa.Table) -> None:
        """Write a unit's answers; raise RuntimeError, and write nothing, where the driver has left the folder."""
        self.lock.check()
        write_unit(self.folder, self.run, unit, answers)


@dataclass(frozen=True, slots=True)
class UnitKey:
    """A unit of a shard of a batch plan, both by number."""

    shard: int
    unit: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A unit on its way to a worker, with a reader of its rows and no others."""

    key: UnitKey
    read: UnitReader
    attempt: int = 0  # handed out again, as machines were lost; what its workers die of counts from nothing


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BatchPlan:
    """Units that one engine answers: those of its shards, in order."""

    load_engine: Callable[[JobSettings], Engine]
    shards: tuple[Shard, ...]
    units: tuple[npt.NDArray[np.int64], ...]  # of each shard

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
        units = tuple(np.asarray(units, np.int64) for units in units_of_shards)
        return cls(load_engine=load_engine, shards=tuple(map(_with_whole_paths, shards)), units=units)

    @property
    def settings(self) -> JobSettings:
        """Return the settings that the engine is loaded by: all shards have the same of these."""
        return self.shards[0].settings

    @property
    def num_units(self) -> int:
        """Count the units of all shards."""
        return sum(map(len, self.units))

    def tasks(self) -> Iterator[Task]:
        """Yield the units in order, each with what its worker needs to read it."""
        for number, (shard, units) in enumerate(zip(self.shards, self.units, strict=True)):
            for unit in map(int, units):
                yield Task(key=UnitKey(number, unit), read=shard.read.narrowed(unit))

    def to_prepare(self) -> "BatchPlan":
        """Return what every preprocessing worker is told: nothing of the engine, which takes seconds to import."""
        return replace(self.for_workers(), load_engine=_no_engine)

    def for_workers(self) -> "BatchPlan":
        """Return what every worker is told, without units and readers: these come with each task."""
        shards = tuple(replace(shard, read=_NoReader()) for shard in self.shards)
        return replace(self, shards=shards, units=(np.empty(0, np.int64),) * len(shards))


def _no_engine(_: JobSettings) -> Engine:
    raise RuntimeError("an engine must be loaded by its own worker")


class _NoReader:
    """Stands where a worker must not look for units that it was not given."""

    def __call__(self, unit: int, failure: Failure | None = None) -> pa.Table:
        raise RuntimeError(f"unit {unit} must be read by its task's reader")

    def narrowed(self, unit: int) -> UnitReader:
        raise RuntimeError(f"unit {unit} must be read by its task's reader")

    def using(self, files: OpenFiles) -> UnitReader:
        raise RuntimeError("units must be read by their tasks' readers")


def _with_whole_paths(shard: Shard) -> Shard:
    markers = replace(shard.markers, folder=fs.absolute(shard.markers.folder))
    lock = replace(shard.lock, url=fs.absolute(shard.lock.url))
    return replace(shard, folder=fs.absolute(shard.folder), markers=markers, lock=lock)


@dataclass(slots=True)
class Spent:
    """Measures what the preparation of a unit takes, and how much of it is waiting for the input."""

    seconds: float = 0.0
    work_s: float = 0.0  # of a core
    input_s: float = 0.0

    @property
    def input_share(self) -> float:
        """Return the share of waiting in waiting and work; what another unit keeps it waiting is neither."""
        return self.input_s / both if (both := self.input_s + self.work_s) else 0.0

    @contextmanager
    def measured(self, waited_s: Callable[[], float]) -> Iterator[None]:
        """Measure a block, during which a stage counts in all for how long it has waited for images."""
        began, worked, waited = time.monotonic(), time.thread_time(), waited_s()
        yield
        self.seconds = time.monotonic() - began
        self.work_s = time.thread_time() - worked
        self.input_s += waited_s() - waited

    def reading(self, read: UnitReader) -> Callable[..., pa.Table]:
        """Return a reader whose time counts as waiting."""

        def timed(unit: int, failure: Failure | None = None) -> pa.Table:
            began = time.monotonic()
            table = read(unit, failure)
            self.input_s += time.monotonic() - began
            return table

        return timed


def pack(key: UnitKey, table: pa.Table, spent: Spent | None = None) -> Batch:
    """Return one row of UNIT_SCHEMA that holds the whole table. Tiles that lie together are not copied."""
    rest, tiles = _apart(table)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rest.schema) as writer:
        writer.write_table(rest)
    spent = spent or Spent()
    told = [pa.array([one], pa.float64()) for one in (spent.seconds, spent.input_share)]
    payload = [_one_value(sink.getvalue()), _one_value(tiles)]
    return pa.table([pa.array([key.shard]), pa.array([key.unit]), *told, *payload], schema=UNIT_SCHEMA)


def unpack(batch: Batch) -> tuple[UnitKey, pa.Table]:
    """Return the unit's key and its table, a view of the batch's memory."""
    if batch.num_rows != 1:
        raise RuntimeError(f"a batch must be one work unit, got {batch.num_rows}")
    (payload,) = binary_views(batch.column("payload"))
    key = UnitKey(batch.column("shard")[0].as_py(), batch.column("unit")[0].as_py())
    table = pa.ipc.open_stream(payload).read_all()
    if batch.column("tiles").null_count:
        return key, table
    (tiles,) = binary_views(batch.column("tiles"))
    return key, _together(table, tiles)


def _apart(table: pa.Table) -> tuple[pa.Table, pa.Buffer | None]:
    """Return the table with the lengths of its tiles instead of them, and their bytes; as it is where these lie in
    several places."""
    index = table.schema.get_field_index("tiles")
    if index < 0 or table.column(index).num_chunks != 1:
        return table, None
    column = table.column(index).chunk(0)
    _, offsets, content = column.buffers()
    bounds = np.frombuffer(offsets, np.int64)[column.offset : column.offset + len(column) + 1]
    lengths = pa.array(np.diff(bounds))
    return table.set_column(index, "tiles", lengths), content.slice(int(bounds[0]), int(bounds[-1] - bounds[0]))


def _together(table: pa.Table, tiles: pa.Buffer) -> pa.Table:
    """Return a table with its tiles."""
    lengths = table.column("tiles").to_numpy()
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    column = pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(lengths), [None, pa.py_buffer(offsets), tiles])
    return table.set_column(table.schema.get_field_index("tiles"), _TILES, column)


def _one_value(content: pa.Buffer | None) -> pa.Array:
    """Return a column of one value, which is not copied."""
    if content is None:
        return pa.nulls(1, pa.large_binary())
    offsets = pa.py_buffer(np.array([0, content.size], np.int64))
    return pa.LargeBinaryArray.from_buffers(pa.large_binary(), 1, [None, offsets, content])


def with_keys(batch: Batch, keys: Sequence[UnitKey]) -> Batch:
    """Return the batch with the keys of all units of its task in its schema, which goes where its data does not."""
    text = json.dumps([[key.shard, key.unit] for key in keys])
    return batch.replace_schema_metadata({_KEYS: text.encode()})


def keys_of(schema: pa.Schema) -> list[UnitKey]:
    """Return the keys in a schema of `with_keys`."""
    return [UnitKey(*key) for key in json.loads(schema.metadata[_KEYS])]
