"""Seconds from an empty process to a ready engine, from a checkpoint of a real shape on the local disk.

    python -m benchmarks.start --shape mistral-7b --folder /tmp/checkpoint

The checkpoint is written first, with random weights, unless the folder holds one. Two processes then start one after
the other: the second finds compiled layers in the cache that the first has filled, as all workers of a machine but one.
The last line of stdout is one JSON object; `read_gb_per_s` is what the disk, or the page cache, gives the same files.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

STEPS = ("imports", "weights", "engine", "first answer")


def main() -> None:
    """Write the checkpoint, start twice, print both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="mistral-7b")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--start", action="store_true", help="only start, from what the folder holds")
    chosen = parser.parse_args()
    if chosen.start:
        sys.stdout.write(json.dumps(start(chosen.folder, chosen.device)) + "\n")
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = chosen.folder or Path(temporary)
        if not list(folder.glob("*.safetensors")):
            write_checkpoint(chosen.shape, folder, chosen.device)
        rate = read_rate(folder)
        runs = [_start_in_a_process(folder, chosen.device) for _ in range(2)]
    result = {"shape": chosen.shape, "read_gb_per_s": rate, "first": runs[0], "second": runs[1]}
    sys.stdout.write(json.dumps(result) + "\n")


def write_checkpoint(shape: str, folder: Path, device: str) -> None:
    """Write a whole checkpoint with random weights in bfloat16."""
    from benchmarks.random_model import build_random, write_model
    from schemas.engine import EngineSettings

    model = write_model(shape, folder)
    build_random(model.config, EngineSettings(device=device)).save_pretrained(folder, max_shard_size="5GB")


def read_rate(folder: Path) -> float:
    """Read the weights' files by themselves, and return GB a second."""
    began, num_bytes = time.perf_counter(), 0
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb", buffering=0) as file:
            while block := file.read(2**26):
                num_bytes += len(block)
    return round(num_bytes / 1e9 / (time.perf_counter() - began), 2)


def start(folder: Path, device: str) -> dict[str, float]:
    """Measure the seconds of each step, and of all together."""
    moments = [time.perf_counter()]
    from benchmarks.workload import make_items, prepared
    from pipeline.engine.engine import Engine
    from pipeline.engine.network.load import load_model
    from schemas.engine import EngineSettings, Sampling

    moments.append(time.perf_counter())
    settings = EngineSettings(device=device, sampling=Sampling(ignore_eos=True))
    model = load_model(str(folder), settings)
    moments.append(time.perf_counter())
    engine = Engine(model, settings)
    moments.append(time.perf_counter())
    scale = 1.0 if device == "cuda" else 0.1
    (answer,) = engine.generate([prepared(str(folder), make_items("caption", 1, scale)[0])])
    assert answer.status == "ok", answer
    moments.append(time.perf_counter())
    seconds = [end - begin for begin, end in zip(moments, moments[1:], strict=False)]
    return {name: round(value, 2) for name, value in zip((*STEPS, "all"), (*seconds, sum(seconds)), strict=True)}


def _start_in_a_process(folder: Path, device: str) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.start", "--start", "--folder", str(folder), "--device", device]
    last = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1]
    result: dict[str, float] = json.loads(last)
    return result


if __name__ == "__main__":
    main()
