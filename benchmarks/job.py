"""A whole job, Parquet to Parquet through Ray, with random weights of a real shape: what feeding the engine costs.

    python -m benchmarks.job --shape mistral-7b --images 1536 [--units-per-model 3]
    python -m benchmarks.job --shape mistral-7b --images 4096 --gpus 1 2

Several numbers of GPUs are a run each over the same input, and the last line has their paces' ratios. Every answer
has the same forced length. `--units-per-model` bounds the units that a generating actor works on at once, to compare
with the number that `pipeline/execution/placement.py` chooses. Seconds count from the call of the job, with the
benchmark's own imports done; `engine_s` is the device's time; the steady pace is that between a fifth and four fifths
of the images. The last line of stdout is one JSON object.
"""

import argparse
import json
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from benchmarks.random_model import write_model, write_weights
from benchmarks.workload import Item, make_items
from pipeline.engine.engine import Engine
from pipeline.execution import placement
from pipeline.job import run_job
from pipeline.plan import plan_job
from schemas.engine import EngineSettings, Sampling
from schemas.job import JobSettings

QUESTION = "Describe the image in more details."
_FILES = 8
_STEADY = (0.2, 0.8)  # of the rows, between which the pace is taken


def main() -> None:
    """Run the job once and print what it took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="mistral-7b")
    parser.add_argument("--images", type=int, default=1536)
    parser.add_argument("--tokens", type=int, default=98, help="of every answer")
    parser.add_argument("--gpus", type=int, nargs="+", default=[1])
    parser.add_argument("--units-per-model", type=int)
    chosen = parser.parse_args()
    if chosen.units_per_model:
        placement.MOST_UNITS = chosen.units_per_model
    scale = 1.0 if all(chosen.gpus) else 0.2
    with tempfile.TemporaryDirectory() as folder:
        settings = write_job(chosen.shape, make_items("caption", chosen.images, scale), Path(folder))
        measured = []
        for gpus in chosen.gpus:
            told = {"max_new_tokens": chosen.tokens, "gpus": gpus, "output": f"{folder}/out-{gpus}"}
            measured.append({"gpus": gpus, **measure(settings.model_copy(update=told))})
            sys.stderr.write(json.dumps(measured[-1]) + "\n")
        ratios = [round(one["steady_images_per_s"] / measured[0]["steady_images_per_s"], 3) for one in measured]
        result = measured[0] if len(measured) == 1 else {"runs": measured, "ratios": ratios}
        sys.stdout.write(json.dumps(result) + "\n")


def write_job(shape: str, items: list[Item], folder: Path) -> JobSettings:
    """Write a table of images, and a checkpoint whose weights are a hole in a file; return a job over them."""
    write_weights(write_model(shape, folder / shape))
    (folder / "in").mkdir()
    a_file = -(-len(items) // _FILES)
    for i in range(0, len(items), a_file):
        part = items[i : i + a_file]
        table = pa.table({"id": [item.id for item in part], "image": [item.image for item in part]})
        pq.write_table(table, folder / "in" / f"{i:06d}.parquet", row_group_size=100)
    return JobSettings(
        input=(str(folder / "in"),),
        output=str(folder / "out"),
        model=str(folder / shape),
        prompt=(QUESTION,),
        chat_template="mistral",
        capacity=3328,
        dtype="auto",
    )


def load(settings: JobSettings) -> Engine:
    """Load random weights of the job's shape, which its model's folder is called after."""
    on_gpu = torch.cuda.is_available()
    told = EngineSettings(
        dtype="bfloat16" if on_gpu else "float32",
        device="cuda" if on_gpu else "cpu",
        capacity=settings.capacity if on_gpu else 1024,
        sampling=Sampling(ignore_eos=True),
    )
    with tempfile.TemporaryDirectory() as folder:
        return Engine(write_model(Path(settings.model).name, Path(folder)).load(told), told)


def measure(settings: JobSettings) -> dict[str, Any]:
    """Run the job; return its seconds, when its first and last units were there, and what its engine did."""
    began, ended, seen = time.monotonic(), threading.Event(), list[float]()
    units = Path(settings.output) / "units"

    def watch() -> None:
        while not ended.wait(0.05):
            if units.exists() and len(list(units.glob("*.parquet"))) > len(seen):
                seen.append(time.monotonic() - began)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    plan = plan_job("caption", settings, QUESTION)
    run_job(plan, load)
    seconds = time.monotonic() - began
    ended.set()
    thread.join()
    timings = json.loads((Path(settings.output) / ".run" / "manifest.json").read_text("utf-8"))["timings"]
    done = timings["engine"]
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return {
        "device": device,
        "images": plan.listing.num_rows,
        "unit_rows": plan.listing.unit_rows,
        "seconds": round(seconds, 1),
        "steady_images_per_s": round(steady(timings["pace"], plan.listing.num_rows), 2),
        "first_unit_s": round(seen[0], 1) if seen else None,
        "engine_s": round(done["vision_s"] + done["prefill_s"] + done["decode_s"], 1),
        "prefill_padding": done["prefill_padding"],
        "slot_use": done["slot_use"],
    }


def steady(points: list[list[float]], rows: int) -> float:
    """Return the rows a second between two shares of all rows, of points [seconds, rows]."""
    inside = [point for point in points if _STEADY[0] * rows <= point[1] <= _STEADY[1] * rows]
    assert len(inside) > 1, "too few units for a steady pace"
    (first_s, first_rows), (last_s, last_rows) = inside[0], inside[-1]
    return (last_rows - first_rows) / (last_s - first_s)


if __name__ == "__main__":
    main()
