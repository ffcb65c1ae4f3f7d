"""Measure each choice of `--attention`: the vision tower alone, on random weights of the published shape.

    python -m benchmarks.attention                                    all three, as the engine runs the tower
    python -m benchmarks.attention --shape tiny --device cpu --tiles 4 --images 8       a try without a GPU

The median of the rounds counts, from tiles on the host to features. `off` is how far the features are from the first
one's, as a share of their length. One whose package is missing says so. The last line of stdout is one JSON object.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor

from benchmarks.random_model import write_model
from benchmarks.workload import make_items, prepared
from pipeline.engine.network.load import LoadedModel
from schemas.engine import Attention, Dtype, EngineSettings
from schemas.sample import Sample

TINY_SCALE = 0.1  # of images, for the tiny shape


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The command line."""

    attention: list[Attention]
    shape: str
    images: int
    tiles: int
    rounds: int
    device: str
    dtype: Dtype

    def settings(self, attention: Attention) -> EngineSettings:
        """Return the engine's settings with this attention."""
        return EngineSettings(dtype=self.dtype, device=self.device, attention=attention)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Result of an attention; of one that this machine has not, `error` says what is missing."""

    attention: Attention
    error: str | None = None
    images_per_s: float = 0.0
    ms_a_tile: float = 0.0
    computing_gb: float = 0.0  # beside the weights, at the fullest; 0 on a CPU
    off: float = 0.0


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the attentions that the command line names."""
    options = _options(arguments)
    with tempfile.TemporaryDirectory() as folder:
        model = write_model(options.shape, Path(folder))
        model.config.get_text_config().num_hidden_layers = 1  # the tower alone is measured
        items = make_items("caption", options.images, TINY_SCALE if options.shape == "tiny" else 1)
        rows = [prepared(folder, item) for item in items]
    measured: list[Measured] = []
    first: Tensor | None = None
    for attention in options.attention:
        try:
            loaded = model.load(options.settings(attention))
        except ValueError as error:
            measured.append(Measured(attention=attention, error=str(error)))
            continue
        if loaded.device.type == "cuda":
            loaded.vision.compile_layers()
        features = _features(loaded, rows, options.tiles)
        first = features if first is None else first
        measured.append(measure(loaded, rows, attention, options, off=_distance(features, first)))
    sys.stderr.write("\n".join(table(measured)) + "\n")
    sys.stdout.write(json.dumps([asdict(one) for one in measured]) + "\n")


def measure(
    loaded: LoadedModel, rows: Sequence[Sample], attention: Attention, options: Options, *, off: float
) -> Measured:
    """Encode the rows as often as there are rounds."""
    on_gpu = loaded.device.type == "cuda"
    before = torch.cuda.memory_allocated(loaded.device) if on_gpu else 0
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(loaded.device)
    seconds = []
    for _ in range(options.rounds):
        began = time.perf_counter()
        _features(loaded, rows, options.tiles)
        seconds.append(time.perf_counter() - began)
    took_s = statistics.median(seconds)
    peak = torch.cuda.max_memory_allocated(loaded.device) if on_gpu else 0
    return Measured(
        attention=attention,
        images_per_s=len(rows) / took_s,
        ms_a_tile=1000 * took_s / sum(len(row.tiles) for row in rows),
        computing_gb=(peak - before) / 1e9,
        off=off,
    )


def table(measured: Sequence[Measured]) -> list[str]:
    """Write a line an attention."""
    lines = ["attention           images/s  ms/tile  computing GB      off"]
    for one in measured:
        numbers = f"{one.images_per_s:8.1f} {one.ms_a_tile:8.3f} {one.computing_gb:13.2f} {one.off:8.1e}"
        lines.append(f"{one.attention:<18} {one.error or numbers}")
    return lines


@torch.inference_mode()
def _features(loaded: LoadedModel, rows: Sequence[Sample], tiles: int) -> Tensor:
    """Encode all rows, (tokens, width), and wait until the device is done."""
    features = torch.cat(loaded.vision.encode(rows, tiles))
    if features.is_cuda:
        torch.cuda.synchronize(features.device)
    return features


def _distance(features: Tensor, others: Tensor) -> float:
    return float((features.float() - others.float()).norm() / others.float().norm())


def _options(arguments: Sequence[str] | None) -> Options:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    every = get_args(Attention)
    parser.add_argument("--attention", nargs="+", choices=every, default=list(every))
    parser.add_argument("--shape", choices=["mistral-7b", "tiny"], default="mistral-7b")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--tiles", type=int, default=40, help="that the tower sees at once")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", choices=get_args(Dtype), default="bfloat16")
    return Options(**vars(parser.parse_args(arguments)))


if __name__ == "__main__":
    main()
