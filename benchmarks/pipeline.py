"""Input to output with an engine that answers at once: images per second a core, and where its time goes.

    python -m benchmarks.pipeline [--images 512] [--formats parquet tar http] [--rounds 3] [--ray 2]

The steps of the actors one after the other in this process, a unit at a time: read, fetch, decode, tile, the rest of a
row, hand-off to the engine's process, answer, write. Seconds are this process's CPU time, so that what else a machine
does counts little. The overhead is what the pipeline adds, fetching over http left out, to the bare function that makes
a sample of a row's bytes and nothing else: decoded, tiled, hashed, its prompt rendered and tokenised. `--ray N` also
runs the job through Ray on N CPUs, by the clock on the wall: on a quiet machine only. The last line of stdout is one
JSON object.
"""

import argparse
import io
import json
import statistics
import sys
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import ray
import torch

from benchmarks.fetch import fetch_all, serving
from benchmarks.job import write_job
from benchmarks.million import Echo
from benchmarks.preprocess import ANYRES
from benchmarks.workload import Item, make_items, prepared
from pipeline.execution.work_units import UNIT_SCHEMA, UnitKey, pack, unpack
from pipeline.job import run_job
from pipeline.plan import Plan, plan_job
from pipeline.preprocess.image import ImageLimits, decode, tile_image
from pipeline.run_folder.merge import finish_run
from pipeline.run_folder.run import begin_run
from pipeline.run_folder.units import write_unit
from pipeline.sources.open_files import OpenFiles
from pipeline.sources.reader import unit_reader
from pipeline.stages.generate import Generate, final_answers
from pipeline.stages.preprocess import Preprocess
from schemas.job import JobSettings

T = TypeVar("T")

FORMATS = ("parquet", "tar", "http")
QUESTION = "Describe the image in more details."
_GPU_IMAGES_PER_S = 20
_SHARDS = 4
_MB = 1e6
_UNIT_ROWS = 64  # as a job of 2,048 rows and more has them
_BARE = "the bare function"


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """The round of median CPU time. `shares` are of that time; they add up to 1."""

    format: str
    images: int
    images_per_core_s: float
    shares: dict[str, float]
    overhead: float  # over the bare preprocessing function
    cores_a_gpu: float  # that feed one at 20 images/s
    mb_per_s_a_gpu: float
    ray_images_per_s: float | None = None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=FORMATS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ray", type=int, metavar="CPUS")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    items = make_items("caption", chosen.images)
    results = []
    for name in chosen.formats:
        with tempfile.TemporaryDirectory() as folder, _job_over(name, items, Path(folder)) as settings:
            result = _measure(name, settings, items, chosen.rounds, chosen.ray)
        sys.stderr.write(_line(result))
        results.append(asdict(result))
    sys.stdout.write(json.dumps({"results": results}) + "\n")


@contextmanager
def _job_over(name: str, items: list[Item], folder: Path) -> Iterator[JobSettings]:
    """Write the images in a format, serve them where that is http; yield a job over them."""
    settings = write_job("mistral-7b", items, folder).model_copy(update={"unit_rows": _UNIT_ROWS})
    if name == "parquet":
        yield settings
    elif name == "tar":
        _write_tars(items, folder / "tars")
        yield settings.model_copy(update={"input": (str(folder / "tars"),)})
    else:
        with serving([item.image for item in items]) as port:
            urls = "".join(f"http://127.0.0.1:{port}/{number}.jpg\n" for number in range(len(items)))
            (folder / "urls.txt").write_text(urls)
            yield settings.model_copy(update={"input": (str(folder / "urls.txt"),), "allow_private": True})


def _write_tars(items: list[Item], folder: Path) -> None:
    folder.mkdir()
    for shard in range(_SHARDS):
        with tarfile.open(folder / f"{shard:05}.tar", "w") as tar:
            for item in items[shard::_SHARDS]:
                member = tarfile.TarInfo(f"{item.id}.jpg")
                member.size = len(item.image)
                tar.addfile(member, io.BytesIO(item.image))


def _measure(name: str, settings: JobSettings, items: list[Item], rounds: int, cpus: int | None) -> Result:
    actors = Preprocess(settings), Generate(settings, lambda _: Echo())  # they live as long as a job
    steps = [_round(name, settings, items, actors, number) for number in range(rounds + 1)][1:]  # the first warms up
    bare = [one.pop(_BARE) for one in steps]
    total = statistics.median(one.total() for one in steps)
    ratios = [(one.total() - one["fetch"]) / alone for one, alone in zip(steps, bare, strict=True)]  # of the same round
    median = sorted(steps, key=lambda one: one.total())[len(steps) // 2]
    pace, mean_bytes = len(items) / total, sum(len(item.image) for item in items) / len(items)
    return Result(
        format=name,
        images=len(items),
        images_per_core_s=round(pace, 1),
        shares={step: round(seconds / median.total(), 3) for step, seconds in median.items()},
        overhead=round(statistics.median(ratios) - 1, 3),
        cores_a_gpu=round(_GPU_IMAGES_PER_S / pace, 2),
        mb_per_s_a_gpu=round(_GPU_IMAGES_PER_S * mean_bytes / _MB, 2),
        ray_images_per_s=_through_ray(settings, cpus) if cpus else None,
    )


class _Clock(Counter[str]):
    """CPU seconds by step."""

    def timed(self, step: str, run: Callable[[], T]) -> T:
        """Run a step and count its time."""
        began = time.process_time()
        done = run()
        self[step] += time.process_time() - began  # type: ignore[assignment]
        return done


def _round(
    name: str, settings: JobSettings, items: list[Item], actors: tuple[Preprocess, Generate], number: int
) -> _Clock:
    """Take all units all the way once; return the seconds of each step."""
    clock = _Clock()
    plan = plan_job("caption", settings.model_copy(update={"output": f"{settings.output}-{number}"}), QUESTION)
    run = begin_run(plan.settings.output, plan.describe(), plan.listing.files)
    prepared(settings.model, items[0])  # loads what it keeps
    read = unit_reader(plan.listing).using(files := OpenFiles())
    for unit in range(plan.listing.num_units):
        _take(plan, run["run"], (unit, clock.timed("read", partial(read, unit))), actors, clock)
        _take_alone(settings.model, items[unit * _UNIT_ROWS : (unit + 1) * _UNIT_ROWS], clock)
    files.close()
    clock.timed("write", lambda: finish_run(plan.units(run["run"]), run["fingerprint"], {}))
    clock["fetch"] = 0
    if name == "http":
        clock.timed("fetch", lambda: fetch_all(_urls(plan), 64))
    clock["rest of a row"] = clock.pop("preprocess") - clock["decode"] - clock["tile"] - clock["fetch"]
    return clock


def _take(plan: Plan, run: str, read: tuple[int, pa.Table], actors: tuple[Preprocess, Generate], clock: _Clock) -> None:
    (unit, requests), (preprocess, generate) = read, actors
    samples = clock.timed("preprocess", lambda: preprocess(requests))
    there = clock.timed("hand-off", lambda: _handed_on(unit, samples))
    answers = clock.timed("answer", lambda: final_answers(generate(there), plan.settings))
    clock.timed("write", lambda: write_unit(plan.settings.output, run, unit, answers))


def _take_alone(model: str, items: list[Item], clock: _Clock) -> None:
    """Do what the bare function does, and decode and tile alone, beside the unit: all meet the same machine."""
    limits = ImageLimits()
    images = clock.timed("decode", lambda: [decode(item.image, limits) for item in items])
    clock.timed("tile", lambda: [tile_image(image, ANYRES).nbytes for image in images])
    clock.timed(_BARE, lambda: [prepared(model, item).id for item in items])


def _handed_on(unit: int, table: pa.Table) -> pa.Table:
    """Return a unit as the engine's process finds it: packed, and copied once, as into Ray's object store."""
    batch = pack(UnitKey(0, unit), table)
    for number, field in enumerate(UNIT_SCHEMA):
        if pa.types.is_large_binary(field.type):
            _, offsets, content = batch.column(number).chunk(0).buffers()
            copy = pa.py_buffer(_stored(field.name, np.frombuffer(content, np.uint8)))
            array = pa.LargeBinaryArray.from_buffers(field.type, 1, [None, offsets, copy])
            batch = batch.set_column(number, field, array)
    return unpack(batch)[1]


_STORE: dict[str, npt.NDArray[np.uint8]] = {}  # the object store's memory, which is there from unit to unit


def _stored(name: str, content: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    if len(_STORE.get(name, ())) < len(content):
        _STORE[name] = np.empty(2 * len(content), np.uint8)
    copy = _STORE[name][: len(content)]
    copy[:] = content
    return copy


def _urls(plan: Plan) -> list[str]:
    return Path(plan.settings.input[0]).read_text().split()


def _through_ray(settings: JobSettings, cpus: int) -> float:
    ray.init(num_cpus=cpus, include_dashboard=False, log_to_driver=False)
    try:
        job = settings.model_copy(update={"output": f"{settings.output}-ray", "gpus": 0})
        return run_job(plan_job("caption", job, QUESTION), load_echo).images_per_s or 0.0
    finally:
        ray.shutdown()


def load_echo(settings: JobSettings) -> Echo:
    """Load an engine that answers at once."""
    return Echo()


def _line(result: Result) -> str:
    shares = ", ".join(f"{step} {share:.1%}" for step, share in result.shares.items())
    ray_pace = "" if result.ray_images_per_s is None else f", through Ray {result.ray_images_per_s:,.1f} images/s"
    return (
        f"{result.format:8} {result.images_per_core_s:,.1f} images/s a core ({shares}), {result.overhead:+.1%} over "
        f"the bare function{ray_pace}; a GPU at {_GPU_IMAGES_PER_S} images/s: {result.cores_a_gpu} cores, "
        f"{result.mb_per_s_a_gpu} MB/s\n"
    )


if __name__ == "__main__":
    main()
