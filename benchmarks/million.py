"""A million rows through the whole pipeline: what the driver, the workers and the object store need meanwhile.

python -m benchmarks.million --rows 1000000 --out /tmp/million
python -m benchmarks.million --rows 1000000 --out /tmp/million --cpus 24 --engines 4

Rows of small pictures go from Parquet to Parquet on a Ray of so many CPUs; the answers are echoes, all else is real.
Several engines have an actor each, as on GPUs, which Ray is told of and nobody looks for.
Every few seconds the resident memory of the driver and of each actor, the object store and what it spilled are sampled
into samples.jsonl; `python -m benchmarks.plot` draws it. The last line of stdout is one JSON object.
"""

import argparse
import io
import json
import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray
from PIL import Image
from ray._private.internal_api import get_memory_info_reply, get_state_from_address

from benchmarks.random_model import write_model, write_weights
from pipeline.job import run_job
from pipeline.plan import plan_job
from pipeline.verify import verify_run
from schemas.answer import Answer, Generation, answer_from
from schemas.engine import EngineStatistics, Sampling
from schemas.job import JobSettings
from schemas.sample import Sample

STORE_BYTES_A_CPU = 125 * 10**6
_PICTURES = 1000  # different ones
_ROWS_A_FILE, _ROWS_A_GROUP = 50_000, 1000
_TEXT = "A street with parked cars and two people who cross it at a light, seen from a window on the second floor."
_STAGES = {"preprocess": "_ReadAndPreprocess", "generate": "_GenerateAndWrite"}  # in the names of the actors' processes


class Echo:
    """An engine that answers at once."""

    def generate(self, samples: Sequence[Sample]) -> Iterator[Answer]:
        """Answer every prompt that did not fail with the same text."""
        text = Generation(text=_TEXT, finish_reason="stop", num_generated_tokens=30, mean_logprob=-1.0)
        for sample in samples:
            for prompt in sample.prompts:
                yield answer_from(sample, prompt, None if prompt.failure else text)

    def set_sampling(self, sampling: Sampling) -> None:
        """Ignore it: nothing is sampled."""

    def statistics(self) -> EngineStatistics:
        """Return zeros: nothing is counted."""
        return EngineStatistics()


@dataclass(frozen=True, slots=True, kw_only=True)
class MemorySample:
    """Megabytes at one moment; `preprocess` and `generate` are the largest actor of each, without the object store."""

    seconds: float
    rows: int  # answered so far
    driver: float
    preprocess: float
    generate: float
    store: float
    spilled: float  # so far


class Watch:
    """Samples memory in a thread while the block runs, into samples.jsonl beside the run folder."""

    def __init__(self, units: Path, unit_rows: int, every_s: float) -> None:
        self.samples: list[MemorySample] = []
        self._units, self._unit_rows, self._every_s = units, unit_rows, every_s
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> "Watch":
        self._started = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        state = get_state_from_address(ray.get_runtime_context().gcs_address)
        while not self._done.wait(self._every_s):
            self.samples.append(self._sample(get_memory_info_reply(state).store_stats))
            with (self._units.parent.parent / "samples.jsonl").open("a") as file:
                file.write(json.dumps(asdict(self.samples[-1])) + "\n")

    def _sample(self, store: object) -> MemorySample:
        actors = dict.fromkeys(_STAGES, 0.0)
        for process in psutil.Process().children(recursive=True):
            title = _title(process)
            for stage, name in _STAGES.items():
                if name in title:
                    actors[stage] = max(actors[stage], _resident_mb(process.pid))
        return MemorySample(
            seconds=round(time.monotonic() - self._started, 1),
            rows=sum(1 for _ in self._units.glob("unit-*")) * self._unit_rows,
            driver=_resident_mb(psutil.Process().pid),
            **actors,
            store=round(getattr(store, "object_store_bytes_used", 0) / 1e6, 1),
            spilled=round(getattr(store, "spilled_bytes_total", 0) / 1e6, 1),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """How large a Ray the rows go through; one engine runs without a GPU, several with one each."""

    cpus: int
    engines: int
    unit_rows: int | None = None

    @property
    def gpus(self) -> int:
        """Of which there is only the number."""
        return self.engines if self.engines > 1 else 0


def write_input(folder: Path, num_rows: int) -> None:
    """Parquet files of small JPEGs, each row with an id of its own."""
    folder.mkdir(parents=True)
    pictures = pa.array([_picture(number) for number in range(_PICTURES)])

    def write(first: int) -> None:
        rows = np.arange(first, min(first + _ROWS_A_FILE, num_rows))
        ids = pc.binary_join_element_wise("row", pa.array(rows).cast(pa.string()), "-")
        table = pa.table({"id": ids, "image": pictures.take(pa.array(rows % _PICTURES))})
        path = folder / f"part-{first // _ROWS_A_FILE:05d}.parquet"
        pq.write_table(table, path, row_group_size=_ROWS_A_GROUP)

    with ThreadPoolExecutor() as pool:
        list(pool.map(write, range(0, num_rows, _ROWS_A_FILE)))


def run(out: Path, num_rows: int, every_s: float, shape: Shape) -> dict[str, object]:
    """Answer so many rows and say what it took."""
    write_input(out / "input", num_rows)
    (out / "model").mkdir()
    write_weights(write_model("tiny", out / "model"))
    plan = plan_job("caption", _settings(out, shape), "Describe the image in more details.")
    start_ray(shape.cpus, shape.gpus)
    began = time.monotonic()
    with Watch(out / "run" / "units", plan.listing.unit_rows, every_s) as watch:
        summary = run_job(plan, load_echo)
    seconds = time.monotonic() - began
    ray.shutdown()
    return {
        **asdict(shape),
        "units": plan.listing.num_units,
        "rows": summary.rows,
        "seconds": round(seconds),
        "rows_per_s": round(summary.rows / seconds),
        **{f"{name}_mb": _first_and_most(watch.samples, name) for name in ("driver", *_STAGES, "store", "spilled")},
    }


def _settings(out: Path, shape: Shape) -> JobSettings:
    return JobSettings(
        input=(str(out / "input"),),
        output=str(out / "run"),
        model=str(out / "model"),
        gpus=shape.gpus,
        unit_rows=shape.unit_rows,
    )


def start_ray(cpus: int, gpus: int) -> None:
    """Start a Ray that believes what it is told of this machine, as a cluster that the job joins does."""
    ray.init(
        address="local",
        num_cpus=cpus,
        num_gpus=gpus,
        object_store_memory=STORE_BYTES_A_CPU * cpus,
        include_dashboard=False,
        log_to_driver=False,
    )
    os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address  # whose GPUs are not looked for on this machine


def load_echo(settings: JobSettings) -> Echo:
    """Return the engine of this benchmark."""
    return Echo()


def _picture(number: int) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (4, 4, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((32, 32)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:  # it has just ended
        return ""


def _resident_mb(pid: int) -> float:
    """Resident memory without what is shared with the object store."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    kilobytes = {name: int(value.split()[0]) for name, value in (x.split(":", 1) for x in lines) if "Rss" in name}
    return round((kilobytes.get("RssAnon", 0) + kilobytes.get("RssFile", 0)) / 1e3, 1)


def _first_and_most(samples: list[MemorySample], name: str) -> list[float]:
    """When a tenth was done, and the most of all."""
    values = [getattr(sample, name) for sample in samples]
    return [max(values[: max(1, len(values) // 10)], default=0.0), max(values, default=0.0)]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--out", type=Path, required=True, help="A folder that is not there yet.")
    parser.add_argument("--every-s", type=float, default=5.0, help="Seconds between two samples.")
    parser.add_argument("--cpus", type=int, default=4, help="CPUs of the Ray.")
    parser.add_argument("--engines", type=int, default=1, help="Actors that generate.")
    parser.add_argument("--unit-rows", type=int, help="Rows of a work unit.")
    arguments = parser.parse_args()
    shape = Shape(cpus=arguments.cpus, engines=arguments.engines, unit_rows=arguments.unit_rows)
    result = run(arguments.out, arguments.rows, arguments.every_s, shape)
    sys.stderr.write(json.dumps(result) + "\n")
    began = time.monotonic()
    problems = verify_run(str(arguments.out / "run"))
    result |= {"verify_s": round(time.monotonic() - began), "problems": problems}
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
