"""The rate of a network's own products in a long run, by the tokens that run together: what a prefill is bound by.

    python -m benchmarks.products                                     llava-v1.6-mistral-7b's, in bfloat16
    python -m benchmarks.products --kernels torch cute --tokens 16896                       PyTorch's and the fused ones
    python -m benchmarks.products --shape tiny --device cpu --tokens 64 128 --seconds 1     a try without a GPU

Each with what a layer does to its result: what is added to the residual, and the gates of the feed-forward.
A card slows down when it is at its power limit: the products run for `--seconds` first, then alternately, so that all
sizes see the same state. Median of the rounds. The last line of stdout is one JSON object.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor
from torch.nn.functional import linear

from benchmarks.random_model import SHAPES, write_model
from pipeline.engine.kernels.choose import fused_kernels
from pipeline.engine.kernels.interface import Fused
from pipeline.engine.network.block import DETERMINISTIC, Block, apply_gates
from schemas.engine import Dtype, EngineSettings, PrefillKernels

NAMES = ("qkv", "out", "gate_up", "down")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """TFLOP/s of each product over all layers, and of all together."""

    tokens: int
    kernels: PrefillKernels
    qkv: float
    out: float
    gate_up: float
    down: float
    together: float


class Layer:
    """Runs the products of a layer that are timed, with these kernels, over (tokens, in) of each."""

    def __init__(self, kernels: PrefillKernels, *, compiled: bool) -> None:
        self._fused: Fused | None = fused_kernels(kernels)
        self._gate = torch.compile(apply_gates, options=DETERMINISTIC) if compiled else apply_gates

    def run(self, name: str, x: Tensor, weight: Tensor, total: Tensor) -> None:
        """Run one product; `total` is the residual that some are added to."""
        if name in ("out", "down"):
            if self._fused is None:
                total.addmm_(x, weight.t())
            else:
                self._fused.add_product(total, x, weight)
        elif self._fused is None:
            found = linear(x, weight)
            if name == "gate_up":
                self._gate(found)
        elif name == "gate_up":
            self._fused.gated_product(x, weight)
        else:
            self._fused.product(x, weight, None)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the sizes that the command line names."""
    flags = _flags(arguments)
    dtype: Dtype = "float32" if flags.device == "cpu" else "bfloat16"
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        loaded = write_model(flags.shape, Path(folder)).load(EngineSettings(device=flags.device, dtype=dtype))
        layers = {kernels: Layer(kernels, compiled=flags.device != "cpu") for kernels in flags.kernels}
        rates = measure(loaded.decoder.blocks, layers, flags.tokens, flags.seconds, flags.rounds)
    sys.stderr.write("\n".join(table(rates)) + "\n")
    sys.stdout.write(json.dumps([asdict(rate) for rate in rates]) + "\n")


def measure(
    blocks: Sequence[Block], layers: dict[PrefillKernels, Layer], sizes: Sequence[int], seconds: float, rounds: int
) -> list[Rate]:
    """Measure the rates at each number of tokens, after so many seconds of work."""
    inputs = {(size, name): _input(blocks[0], size, name) for size in sizes for name in NAMES}
    totals = {size: torch.zeros_like(inputs[size, "out"]) for size in sizes}
    keys = [(size, kernels, name) for size in sizes for kernels in layers for name in NAMES]
    for size, kernels, name in keys:  # compiles
        _run(blocks[:1], layers[kernels], name, inputs[size, name], totals[size])
    began = time.perf_counter()
    while time.perf_counter() - began < seconds:
        _run(blocks, next(iter(layers.values())), "gate_up", inputs[sizes[0], "gate_up"], totals[sizes[0]])
    took: dict[tuple[int, PrefillKernels, str], list[float]] = {key: [] for key in keys}
    for _ in range(rounds):
        for size, kernels, name in keys:
            took[size, kernels, name].append(_run(blocks, layers[kernels], name, inputs[size, name], totals[size]))
    return [
        _rate(blocks, size, kernels, {name: statistics.median(took[size, kernels, name]) for name in NAMES})
        for size in sizes
        for kernels in layers
    ]


def table(rates: Sequence[Rate]) -> list[str]:
    """Write a line a size and kind of kernels."""
    lines = ["tokens kernels      qkv     out  gate_up    down  together   TFLOP/s"]
    for one in rates:
        lines.append(
            f"{one.tokens:6} {one.kernels:7} {one.qkv:8.4g} {one.out:7.4g} {one.gate_up:8.4g} {one.down:7.4g}"
            f" {one.together:9.4g}"
        )
    return lines


def _rate(blocks: Sequence[Block], tokens: int, kernels: PrefillKernels, took: dict[str, float]) -> Rate:
    work = {name: 2e-12 * tokens * len(blocks) * _weight(blocks[0], name).numel() for name in NAMES}
    rates = {name: work[name] / took[name] for name in NAMES}
    return Rate(tokens=tokens, kernels=kernels, together=sum(work.values()) / sum(took.values()), **rates)


def _run(blocks: Sequence[Block], layer: Layer, name: str, x: Tensor, total: Tensor) -> float:
    """Run the product of every layer, each with its own weights, and return the seconds."""
    wait: Callable[[], None] = torch.cuda.synchronize if x.is_cuda else lambda: None
    total.zero_()
    wait()
    began = time.perf_counter()
    for block in blocks:
        layer.run(name, x, _weight(block, name), total)
    wait()
    return time.perf_counter() - began


def _input(block: Block, tokens: int, name: str) -> Tensor:
    weight = _weight(block, name)
    return torch.randn(tokens, weight.shape[1], dtype=weight.dtype, device=weight.device)


def _weight(block: Block, name: str) -> Tensor:
    weight: Tensor = getattr(block, name).weight
    return weight


def _flags(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=list(SHAPES), default="mistral-7b")
    parser.add_argument("--tokens", type=int, nargs="+", default=[8448, 10240, 12672, 16384, 16896, 21120])
    parser.add_argument("--kernels", nargs="+", choices=get_args(PrefillKernels), default=["torch"])
    parser.add_argument("--seconds", type=float, default=15, help="of work before anything counts")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cuda")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
