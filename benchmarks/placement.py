"""Large networks on one card and on several: memory, tokens and images a second on random weights of real shapes.

    python -m benchmarks.placement 34b 72b:2                          a shape, and over how many cards
    python -m benchmarks.placement 34b::fp8 34b::4bit 110b:2          and in how many bits: fp8, 8bit or 4bit
    python -m benchmarks.placement 34b:2 --kv-cache-dtype int8        keys and values in 8 bits
    python -m benchmarks.placement tiny:2 --device cpu --images 4     a try without a GPU

Each runs in a process of its own, so that no memory of another is left; one that fails says why, and the others go on.
Rows are preprocessed before. Tokens a second are those of the seconds in which a card is at such work; `busy` is the
share of all seconds in which a card is at any, the mean of the cards. The last line of stdout is one JSON object.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast, get_args

import torch

from benchmarks.random_model import SHAPES, write_model
from benchmarks.workload import make_items, prepared
from pipeline.engine.engine import Engine
from schemas.engine import Dtype, EngineSettings, KvCacheDtype, Quantize, Sampling
from schemas.sample import Sample

TINY_SCALE = 0.1  # of images and answers, for the tiny shape
CAPACITY = 3328  # tokens: the largest picture, its question and the longest caption


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A shape and where it is put."""

    shape: str
    num_devices: int
    quantize: Quantize | None
    device: str
    dtype: Dtype
    images: int
    prefill_tokens: int | None
    kv_cache_dtype: KvCacheDtype | None

    def settings(self) -> EngineSettings:
        """Return the engine's settings; answers have the length that the workload forces."""
        return EngineSettings(
            dtype=self.dtype,
            device=self.device,
            num_devices=self.num_devices,
            quantize=self.quantize,
            capacity=None if self.shape == "tiny" else CAPACITY,
            prefill_tokens=self.prefill_tokens,
            kv_cache_dtype=self.kv_cache_dtype,
            sampling=Sampling(ignore_eos=True),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Result of a case."""

    case: Case
    weights_gb: list[float]  # of each card, the vision tower included; empty without one
    slots: int
    ready_s: float  # weights drawn, layers compiled
    images_per_s: float
    prompt_tokens_per_s: float  # while prefilling
    answer_tokens_per_s: float  # while decoding
    ms_a_step: float
    busy: float


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the cases that the command line names, one process each."""
    flags = _flags(arguments)
    if len(flags.case) == 1:
        measured = [asdict(measure(_case(flags.case[0], flags)))]
    else:
        measured = [_in_own_process(text, flags) for text in flags.case]
    sys.stderr.write("\n".join(table(measured)) + "\n")
    sys.stdout.write(json.dumps(measured) + "\n")
    if any("error" in one for one in measured):
        raise SystemExit(1)


def measure(case: Case) -> Measured:
    """Draw the weights, warm up with two rows, answer all."""
    settings = case.settings()
    with tempfile.TemporaryDirectory() as folder:
        model = write_model(case.shape, Path(folder))
        scale = TINY_SCALE if case.shape == "tiny" else 1
        rows = [prepared(folder, item) for item in make_items("caption", case.images, scale)]
    began = time.perf_counter()
    loaded = model.load(settings)
    cards = [part.device for part in loaded.decoder.parts if part.device.type == "cuda"]
    weights = [round(torch.cuda.memory_allocated(card) / 1e9, 1) for card in cards]
    engine = Engine(loaded, settings)
    _answer(engine, rows[:2])
    ready_s = time.perf_counter() - began
    before = engine.statistics()
    took_s = _answer(engine, rows)
    after = engine.statistics()
    engine.close()
    seconds = [one.vision_s + one.prefill_s + one.decode_s for one in (before, after)]
    steps, decode_s = after.num_decode_steps - before.num_decode_steps, after.decode_s - before.decode_s
    return Measured(
        case=case,
        weights_gb=weights,
        slots=engine.shapes.slots,
        ready_s=ready_s,
        images_per_s=len(rows) / took_s,
        prompt_tokens_per_s=(after.num_prompt_tokens - before.num_prompt_tokens) / (after.prefill_s - before.prefill_s),
        answer_tokens_per_s=(after.num_answer_tokens - before.num_answer_tokens) / decode_s,
        ms_a_step=1000 * decode_s / max(1, steps),
        busy=(seconds[1] - seconds[0]) / took_s,
    )


def table(measured: Sequence[dict[str, object]]) -> list[str]:
    """Write a line a case; one that failed has its error."""
    lines = [
        "shape         cards  weights     GB a card      slots  ready s  images/s  prompt tok/s  answer tok/s"
        "  ms/step  busy"
    ]
    for one in measured:
        if "error" in one:
            lines.append(f"{one['case']:<20} {one['error']}")
            continue
        case = cast(dict[str, object], one["case"])
        gigabytes = "+".join(f"{gb}" for gb in cast(list[float], one["weights_gb"]))
        lines.append(
            f"{case['shape']:<13} {case['num_devices']:5}  {case['quantize'] or case['dtype']:<10} {gigabytes:>11}"
            f" {one['slots']:10} {one['ready_s']:8.1f} {one['images_per_s']:9.2f}"
            f" {one['prompt_tokens_per_s']:13.0f} {one['answer_tokens_per_s']:13.0f}"
            f" {one['ms_a_step']:8.1f} {one['busy']:5.2f}"
        )
    return lines


def _answer(engine: Engine, rows: Sequence[Sample]) -> float:
    """Answer the rows, and return the seconds."""
    began = time.perf_counter()
    for answer in engine.generate(rows):
        assert answer.status == "ok", answer
    return time.perf_counter() - began


def _in_own_process(text: str, flags: argparse.Namespace) -> dict[str, object]:
    options = ["--images", str(flags.images), "--device", flags.device, "--dtype", flags.dtype]
    options += ["--kv-cache-dtype", flags.kv_cache_dtype] if flags.kv_cache_dtype else []
    options += ["--prefill-tokens", str(flags.prefill_tokens)] if flags.prefill_tokens else []
    command = [sys.executable, "-m", "benchmarks.placement", text, *options]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode != 0:
        sys.stderr.write(done.stderr)
        said = done.stderr.strip().splitlines()
        return {"case": text, "error": said[-1] if said else f"exit status {done.returncode}"}
    found: list[dict[str, object]] = json.loads(done.stdout.splitlines()[-1])
    sys.stderr.write(table(found)[1] + "\n")
    return found[0]


def _case(text: str, flags: argparse.Namespace) -> Case:
    shape, cards, quantize = [*text.split(":"), "", ""][:3]
    if shape not in SHAPES:
        raise ValueError(f"a case's shape must be one of {', '.join(SHAPES)}, got {text!r}")
    return Case(
        shape=shape,
        num_devices=int(cards or 1),
        quantize=cast(Quantize | None, quantize or None),
        device=flags.device,
        dtype=flags.dtype,
        images=flags.images,
        prefill_tokens=flags.prefill_tokens,
        kv_cache_dtype=flags.kv_cache_dtype,
    )


def _flags(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", nargs="+", help="SHAPE, SHAPE:CARDS or SHAPE:CARDS:QUANTIZE")
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--prefill-tokens", type=int, help="of one prefill; None: as the engine chooses")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", choices=get_args(Dtype), default="bfloat16")
    parser.add_argument("--kv-cache-dtype", choices=get_args(KvCacheDtype))
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
