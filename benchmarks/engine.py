"""Images per second from JPEG bytes to answers, on random weights of a real shape: preprocessing processes feed the
engine, answers have forced lengths, the median of the rounds counts.

    python -m benchmarks.engine --workload caption ocr questions --images 512
    python -m benchmarks.engine --workload caption --quantize fp8 --profile
    python -m benchmarks.engine --shape tiny --device cpu --images 8 --rounds 1      a try without a GPU

`share` is that of the arithmetic alone at the product rate measured first. The last line of stdout is one JSON object.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TextIO, TypeVar, get_args

import torch

from benchmarks.random_model import SHAPES, write_model
from benchmarks.reference import transformers_rate
from benchmarks.workload import TEXTS, make_items, samples, workers
from pipeline.engine.arithmetic import product_rate
from pipeline.engine.engine import Engine
from pipeline.engine.network.load import LoadedModel
from schemas.engine import (
    Attention,
    DecodeKernel,
    Dtype,
    EngineSettings,
    EngineStatistics,
    KvCacheDtype,
    PrefillKernels,
    Quantize,
    Sampling,
)
from schemas.sample import Sample

T = TypeVar("T")

WARM_UP = 64  # images
TINY_SCALE = 0.1  # of images and answers, for the tiny shape


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The command line."""

    workload: list[str]
    images: int
    rounds: int
    shape: str
    device: str
    dtype: Dtype
    quantize: Quantize | None
    kv_cache_dtype: KvCacheDtype | None
    attention: Attention
    image_tokens: float
    gpus_per_model: int
    slots: int | None
    pages: int | None
    capacity: int | None
    budget: int | None
    bucket: int
    decode_kernel: DecodeKernel | None
    prefill_kernels: PrefillKernels | None
    eager: bool
    workers: int
    profile: bool
    compare_transformers: int

    @property
    def scale(self) -> float:
        """Return how much smaller than the real ones images and answers are."""
        return TINY_SCALE if self.shape == "tiny" else 1

    def settings(self) -> EngineSettings:
        """Return the engine's settings, end tokens ignored: the workload forces the answers' lengths."""
        return EngineSettings(
            dtype=self.dtype,
            device=self.device,
            quantize=self.quantize,
            kv_cache_dtype=self.kv_cache_dtype,
            attention=self.attention,
            image_tokens=self.image_tokens,
            num_devices=self.gpus_per_model,
            slots=self.slots,
            pages=self.pages,
            capacity=self.capacity,
            prefill_tokens=self.budget,
            bucket=self.bucket,
            decode_kernel=self.decode_kernel,
            prefill_kernels=self.prefill_kernels,
            compile=False if self.eager else None,
            cuda_graphs=not self.eager,
            sampling=Sampling(ignore_eos=True),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """A workload's median round; `rounds` are the images per second of all of them."""

    workload: str
    images_per_s: float
    answers_per_s: float
    share: float
    rounds: list[float]
    statistics: EngineStatistics  # of the median round


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """All rows once."""

    seconds: float
    statistics: EngineStatistics


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the workloads that the command line names."""
    options = _options(arguments)
    with tempfile.TemporaryDirectory() as folder, workers(options.workers) as pool:
        model = write_model(options.shape, Path(folder))
        loaded = _timed("weights", lambda: model.load(options.settings()))
        limit = product_rate(loaded.device, getattr(torch, options.dtype), fp8=options.quantize == "fp8")
        _say(f"products alone: {limit / 1e12:.3g} TFLOP/s")
        results = []
        for workload in options.workload:
            engine = _timed("engine", lambda: Engine(loaded, options.settings()))
            _say(str(engine.shapes))
            rows = Rows(pool=pool, folder=folder, workload=workload, options=options)
            results.append(measure(engine, rows, limit))
            if options.profile:
                _profile(engine, rows)
            engine.close()
        compared = _compare(loaded, rows) if options.compare_transformers else None
    _say(table(results), to=sys.stdout)
    summary: dict[str, Any] = {"results": [asdict(result) for result in results], "transformers_images_per_s": compared}
    summary |= {"options": asdict(options), "product_tflops": limit / 1e12}
    _say(json.dumps(summary), to=sys.stdout)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """A workload's rows, prepared anew from their encoded images each time they are asked for."""

    pool: ProcessPoolExecutor
    folder: str
    workload: str
    options: Options

    def prepared(self, num_images: int) -> Iterable[Sample]:
        """Prepare the first rows, as the engine takes them."""
        items = make_items(self.workload, num_images, self.options.scale)
        return samples(self.pool, items, self.folder, self.options.image_tokens)


def measure(engine: Engine, rows: Rows, limit: float) -> Result:
    """Run all rounds, after a small one that does not count."""
    known = list(rows.prepared(WARM_UP))
    _timed("warm-up", lambda: sum(1 for _ in engine.generate(known)))
    rounds = sorted((_round(engine, rows) for _ in range(rows.options.rounds)), key=lambda one: one.seconds)
    middle = rounds[len(rounds) // 2]
    images_per_s = rows.options.images / middle.seconds
    return Result(
        workload=rows.workload,
        images_per_s=images_per_s,
        answers_per_s=images_per_s * len(known[0].prompts),
        share=middle.statistics.teraflop * 1e12 / middle.seconds / limit,
        rounds=[rows.options.images / one.seconds for one in rounds],
        statistics=middle.statistics,
    )


def table(results: Sequence[Result]) -> str:
    """Write the results for people."""
    head = "workload   images/s  answers/s  share  vision s  prefill s  decode s  waiting s  padding  tiles  slots  OOM"
    lines = [head]
    for result in results:
        s = result.statistics
        lines.append(
            f"{result.workload:<10} {result.images_per_s:8.2f} {result.answers_per_s:10.2f} {result.share:6.1%}"
            f" {s.vision_s:9.2f} {s.prefill_s:10.2f} {s.decode_s:9.2f} {s.waiting_s:10.2f}"
            f" {s.prefill_padding:8.1%} {s.tile_padding:6.1%} {s.slot_use:6.1%} {s.num_out_of_memory:4d}"
        )
    return "\n".join(lines)


def _round(engine: Engine, rows: Rows) -> Round:
    before, began = engine.statistics(), time.perf_counter()
    for answer in engine.generate(rows.prepared(rows.options.images)):
        assert answer.status == "ok", answer
    found = Round(seconds=time.perf_counter() - began, statistics=engine.statistics() - before)
    did = found.statistics
    _say(
        f"{rows.workload}: {rows.options.images / found.seconds:.2f} images/s, {found.seconds:.1f} s: vision"
        f" {did.vision_s:.2f}, prefill {did.prefill_s:.2f}, decode {did.decode_s:.2f}, waiting {did.waiting_s:.2f};"
        f" {did.num_prefills} prefills of {1000 * did.prefill_s / max(1, did.num_prefills):.0f} ms,"
        f" {did.num_decode_steps} steps of {1000 * did.decode_s / max(1, did.num_decode_steps):.1f} ms;"
        f" {did.utilisation:.1%} of the product rate while at work"
    )
    return found


def _profile(engine: Engine, rows: Rows) -> None:
    """Print where the device's time goes: vision and prefill alone, then with a few tokens for all rows."""
    known = list(rows.prepared(64))
    longest = max(len(sample.prompts[0].token_ids) for sample in known)
    alike = [sample for sample in known if len(sample.prompts[0].token_ids) == longest]
    on_gpu = torch.cuda.is_available()
    kinds = [torch.profiler.ProfilerActivity.CUDA if on_gpu else torch.profiler.ProfilerActivity.CPU]
    for name, chosen, limit in (("vision and prefill", alike, 1), ("40 tokens a row", known, 40)):
        asked = [_limited(sample, limit) for sample in chosen]
        with torch.profiler.profile(activities=kinds) as profile:
            answers = list(engine.generate(asked))
        _say(f"{name}, {len(answers)} rows:")
        order = "self_cuda_time_total" if on_gpu else "self_cpu_time_total"
        _say(profile.key_averages().table(sort_by=order, row_limit=25, max_name_column_width=70))


def _limited(sample: Sample, limit: int) -> Sample:
    return replace(sample, prompts=tuple(replace(prompt, max_new_tokens=limit) for prompt in sample.prompts))


def _compare(loaded: LoadedModel, rows: Rows) -> float:
    rate = transformers_rate(loaded, list(rows.prepared(rows.options.compare_transformers)))
    _say(f"transformers' generate, left-padded batches of 32: {rate:.2f} images/s")
    return rate


def _timed(name: str, run: Callable[[], T]) -> T:
    began = time.perf_counter()
    result = run()
    _say(f"{name}: {time.perf_counter() - began:.1f} s")
    return result


def _say(text: str, *, to: TextIO | None = None) -> None:
    file = to or sys.stderr
    file.write(text + "\n")
    file.flush()


def _options(arguments: Sequence[str] | None) -> Options:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", nargs="+", choices=list(TEXTS), default=["caption"])
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--shape", choices=list(SHAPES), default="mistral-7b")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", choices=get_args(Dtype), default="bfloat16")
    parser.add_argument("--quantize", choices=get_args(Quantize))
    parser.add_argument("--kv-cache-dtype", choices=get_args(KvCacheDtype))
    parser.add_argument("--attention", choices=get_args(Attention), default="sdpa", help="of the vision tower")
    parser.add_argument("--image-tokens", type=float, default=1.0, help="the share of an image's tokens that is kept")
    parser.add_argument("--gpus-per-model", type=int, default=1)
    parser.add_argument("--slots", type=int)
    parser.add_argument("--pages", type=int, help="of 64 tokens, for all slots")
    parser.add_argument("--capacity", type=int, help="tokens of a row, at most")
    parser.add_argument("--budget", type=int, help="tokens of one prefill")
    parser.add_argument("--bucket", type=int, default=16)
    parser.add_argument("--decode-kernel", choices=get_args(DecodeKernel))
    parser.add_argument("--prefill-kernels", choices=get_args(PrefillKernels))
    parser.add_argument("--eager", action="store_true", help="neither compiled layers nor a CUDA graph")
    parser.add_argument("--workers", type=int, default=max(1, (os.cpu_count() or 2) - 2))
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--compare-transformers", type=int, default=0, metavar="IMAGES")
    return Options(**vars(parser.parse_args(arguments)))


if __name__ == "__main__":
    main()
