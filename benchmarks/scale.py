"""How many rows a second one job takes, and what a driver holds of a hundred million: engines answer at once.

    python -m benchmarks.scale job --rows 400000 --cpus 16 --out /tmp/scale
    python -m benchmarks.scale job --rows 2000000 --cpus 32 --engines 8 --preprocess-workers 22 --out /tmp/scale
    python -m benchmarks.scale driver --rows 100000000 --cards 512

`job` takes rows of small JPEGs from Parquet to Parquet through a Ray of so many CPUs of this machine; the answers are
echoes, all else is real. The steady pace is that between a fifth and four fifths of the rows: starts are not in it.
`driver` needs no Ray: it lists so many rows and hands out their units to so many cards of 20 images/s, for as long as
`--minutes` of the cards' time, and says what one unit costs the driver and how its memory grows. The last line of
stdout is one JSON object.
"""

import argparse
import heapq
import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import psutil
import ray
from ray import cloudpickle

from benchmarks.job import steady
from benchmarks.million import load_echo, start_ray, write_input
from benchmarks.random_model import write_model, write_weights
from pipeline.execution.dispatch import Dispatch, Prepared
from pipeline.execution.placement import Load, units_at_once
from pipeline.execution.work_units import BatchPlan, Owned, Shard
from pipeline.job import run_job
from pipeline.plan import plan_job
from pipeline.run_folder.markers import Markers
from pipeline.run_folder.run import read_manifest
from pipeline.sources.columns import Columns
from pipeline.sources.listing import Listing, cut, default_unit_rows, files_table
from pipeline.sources.parquet import Parquet
from pipeline.sources.reader import unit_reader
from pipeline.stages.preprocess import Preprocess
from pipeline.storage.filesystem import FileInfo
from schemas.job import JobSettings

_ROWS_A_FILE = 50_000
_IMAGES_PER_S = 20
_UNIT_BYTES = 110 * 10**6  # of 64 rows of five tiles
_PREPARE_S = 0.6  # of such a unit, on a core


@dataclass(frozen=True, slots=True, kw_only=True)
class JobResult:
    """Measured over a job; seconds are the clock's, but for the driver's, which are its CPU's."""

    rows: int
    units: int
    cpus: int
    engines: int
    seconds: float
    first_unit_s: float
    steady_rows_per_s: float
    steady_units_per_s: float
    driver_ms_a_unit: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DriverResult:
    """Measured over the driver's part of a run: its listing, and the handing out of units."""

    rows: int
    units: int
    cards: int
    listing_s: float
    listing_mb: int
    handed_out: int
    ms_a_unit: float
    cards_busy: float
    mb_after_a_tenth: int  # beside the listing
    mb_at_the_end: int


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, dest="command")
    job = commands.add_parser("job")
    job.add_argument("--rows", type=int, default=400_000)
    job.add_argument("--out", type=Path, required=True, help="a folder; its input is made once")
    job.add_argument("--cpus", type=int, default=16)
    job.add_argument("--engines", type=int, default=4, help="one actor each")
    job.add_argument("--preprocess-workers", type=int, help="as many as they need where it is not given")
    job.add_argument("--unit-rows", type=int)
    driver = commands.add_parser("driver")
    driver.add_argument("--rows", type=int, default=100_000_000)
    driver.add_argument("--cards", type=int, default=512)
    driver.add_argument("--minutes", type=float, default=5.0)
    chosen = parser.parse_args()
    result = measure_job(chosen) if chosen.command == "job" else measure_driver(chosen)
    sys.stdout.write(json.dumps(asdict(result)) + "\n")


def measure_job(chosen: argparse.Namespace) -> JobResult:
    """Take the rows through Ray, and return how fast that went."""
    settings = _settings(chosen)
    if not (chosen.out / "input").exists():
        write_input(chosen.out / "input", chosen.rows)
        (chosen.out / "model").mkdir()
        write_weights(write_model("tiny", chosen.out / "model"))
    plan = plan_job("caption", settings, "What is this?")
    start_ray(chosen.cpus, chosen.engines)  # GPUs of which there is only the number
    began, cpu_began = time.monotonic(), time.process_time()
    summary = run_job(plan, load_echo)
    seconds, cpu_s = time.monotonic() - began, time.process_time() - cpu_began
    ray.shutdown()
    manifest = read_manifest(settings.output)
    assert manifest is not None
    pace = steady(manifest["timings"]["pace"], summary.rows)
    return JobResult(
        rows=summary.rows,
        units=plan.listing.num_units,
        cpus=chosen.cpus,
        engines=chosen.engines,
        seconds=round(seconds, 1),
        first_unit_s=round(seconds - manifest["timings"]["pace"][-1][0], 1),
        steady_rows_per_s=round(pace),
        steady_units_per_s=round(pace / plan.listing.unit_rows, 1),
        driver_ms_a_unit=round(1000 * cpu_s / plan.listing.num_units, 2),
    )


def _settings(chosen: argparse.Namespace) -> JobSettings:
    return JobSettings(
        input=(str(chosen.out / "input"),),
        output=str(chosen.out / f"run-{int(time.time())}"),
        model=str(chosen.out / "model"),
        limit=chosen.rows,
        gpus=chosen.engines,
        preprocess_workers=chosen.preprocess_workers,
        unit_rows=chosen.unit_rows,
    )


def measure_driver(chosen: argparse.Namespace) -> DriverResult:
    """List and hand out, and return what that costs."""
    process = psutil.Process()
    before, began = process.memory_info().rss, time.monotonic()
    listing = _listing(chosen.rows)
    listing_s, listing_mb = time.monotonic() - began, (process.memory_info().rss - before) / 1e6
    plan = _plan(listing)
    load = Load(units=plan.num_units, prompts=chosen.rows)
    cards = Cards(chosen.cards, units_at_once(plan.settings, load, chosen.cards), listing.unit_rows)
    held, cpu_began = [process.memory_info().rss], time.process_time()
    for part in range(10):
        cards.work(plan, until_s=60 * chosen.minutes * (part + 1) / 10)
        held.append(process.memory_info().rss)
    cpu_s = time.process_time() - cpu_began
    return DriverResult(
        rows=chosen.rows,
        units=listing.num_units,
        cards=chosen.cards,
        listing_s=round(listing_s, 1),
        listing_mb=round(listing_mb),
        handed_out=cards.done,
        ms_a_unit=round(1000 * cpu_s / cards.done, 2),
        cards_busy=round(cards.done * listing.unit_rows / (_IMAGES_PER_S * chosen.cards * 60 * chosen.minutes), 3),
        mb_after_a_tenth=round((held[1] - held[0]) / 1e6),
        mb_at_the_end=round((held[-1] - held[0]) / 1e6),
    )


def _listing(num_rows: int) -> Listing:
    num_files = -(-num_rows // _ROWS_A_FILE)
    infos = [
        FileInfo(url=f"s3://bucket/datasets/pictures/part-{i:08d}.parquet", size=10**9, version=f'"{i:032x}"')
        for i in range(num_files)
    ]
    files = files_table(infos, "s3://bucket/datasets/", np.full(num_files, _ROWS_A_FILE))
    rows = default_unit_rows(num_rows)
    ranges = cut(files, num_rows, rows)
    return Listing(
        source=Parquet(), columns=Columns(), files=files, row_ranges=ranges, unit_rows=rows, num_rows=num_rows
    )


def _plan(listing: Listing) -> BatchPlan:
    settings = JobSettings(input=("s3://bucket",), output="out")
    shard = Shard(
        settings=settings,
        read=unit_reader(listing),
        load_preprocess=Preprocess,
        folder="out",
        run="r",
        markers=Markers(folder="out/.run", driver="d"),
        lock=Owned(url="out/.run/driver.lock", token="d"),
    )
    return BatchPlan.of([shard], [range(listing.num_units)], load_echo)


class Cards:
    """Cards and cores that take their time, by a clock that only they move."""

    def __init__(self, num_cards: int, units: int, unit_rows: int) -> None:
        self.done = 0
        self._now, self._number = 0.0, 0
        self._unit_s = unit_rows / _IMAGES_PER_S
        self._num_cards, self._units = num_cards, units
        self._events: list[tuple[float, int, int | None, Prepared]] = []
        self._free = [0.0] * num_cards
        self._cores = [0.0] * num_cards
        self._dispatch: Dispatch | None = None

    def work(self, plan: BatchPlan, until_s: float) -> None:
        """Hand out units until then, as a driver does, each with what a worker needs of it."""
        dispatch = self._dispatch = self._dispatch or self._ready(plan)
        while self._now < until_s and dispatch.num_left:
            while tasks := dispatch.next_tasks():
                cloudpickle.dumps(tasks)
                core = heapq.heappop(self._cores)
                for task in tasks:
                    core = max(core, self._now) + _PREPARE_S
                    self._at(core, None, Prepared(key=task.key, num_bytes=_UNIT_BYTES))
                heapq.heappush(self._cores, core)
            while (pair := dispatch.next_pair()) is not None:
                card, prepared = pair
                self._free[card] = max(self._now, self._free[card]) + self._unit_s
                self._at(self._free[card], card, prepared)
            self._now, _, worker, prepared = heapq.heappop(self._events)
            if worker is None:
                dispatch.add_prepared(prepared)
            else:
                self.done += dispatch.add_report(worker, prepared, _PREPARE_S)

    def _at(self, moment: float, card: int | None, prepared: Prepared) -> None:
        self._number += 1
        heapq.heappush(self._events, (moment, self._number, card, prepared))

    def _ready(self, plan: BatchPlan) -> Dispatch:
        dispatch = Dispatch(plan.tasks(), plan.num_units, store_bytes=self._num_cards * 3e10, clock=lambda: self._now)
        for card in range(self._num_cards):
            dispatch.add_worker(card, self._units + 1)
        return dispatch


if __name__ == "__main__":
    main()
