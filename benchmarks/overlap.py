"""Do decode steps run beside prefills for less than their own time? A card's processors shared out between the two.

    python -m benchmarks.overlap --sms 0 16 32 48 64                on a Hopper GPU, with the `[hopper]` packages
    python -m benchmarks.overlap --shape tiny --device cpu --dtype float32 --sms 0 --slots 4 --length 40 --seconds 1

A prefill is bound by arithmetic and power, a step by memory, so both at once might cost less than one after the other.
Steps run in a green context of `--sms` processors and prefills on the others; 0 stands for both on all of them, on two
streams, steps first. Each runs for `--seconds` alone, and then both at once. A rate is a share of the same work's rate
alone on the whole card; where the two shares add up to more than 1, running both at once gains that much. The last line
of stdout is one JSON object.
"""

# mypy: disable-error-code="import-not-found"
# The driver's and the fused kernels' packages are for GPUs alone.

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from benchmarks.random_model import SHAPES, write_model
from pipeline.engine.kernels.choose import fused_kernels
from pipeline.engine.kernels.layout import Layout, Segment, layout, round_up
from pipeline.engine.kernels.pages import PAGE, Allocator, num_pages
from pipeline.engine.kernels.torch_attention import SPAN_STEP, Attend, attend_one_by_one, attend_together
from pipeline.engine.network.kv_cache import KVCache, Write, write_plainly
from pipeline.engine.network.load import LoadedModel
from pipeline.engine.network.memory import cache_shape
from pipeline.engine.shapes import Shapes, resolve_shapes
from schemas.engine import Dtype, EngineSettings, KvCacheDtype

_AHEAD = 3  # pieces of work launched before one is done
_FEWEST = 4  # ends that a rate is taken from


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The command line."""

    shape: str
    device: str
    dtype: Dtype
    kv_cache_dtype: KvCacheDtype | None
    sms: list[int]
    slots: int
    length: int
    prompts: int
    seconds: float
    rounds: int


@dataclass(slots=True, kw_only=True)
class Lane:
    """Launches one kind of work on its stream again and again, a few pieces ahead of the device."""

    run: Callable[[], object]
    stream: "torch.cuda.Stream | None"
    ends: list[float] = field(default_factory=list)  # seconds
    _begun: deque["torch.cuda.Event"] = field(default_factory=deque)

    def pump(self) -> None:
        """Launch a piece if few are under way, and note those that have ended."""
        if self.stream is None:
            self.run()
            self.ends.append(time.perf_counter())
            return
        while self._begun and self._begun[0].query():
            self._begun.popleft()
            self.ends.append(time.perf_counter())
        if len(self._begun) < _AHEAD:
            with torch.cuda.stream(self.stream):
                self.run()
                self._begun.append(self.stream.record_event())

    @property
    def per_s(self) -> float:
        """Return pieces a second, between the first end and the last."""
        return (len(self.ends) - 1) / (self.ends[-1] - self.ends[0]) if len(self.ends) > 1 else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """Rates of both kinds of work, alone on their own processors and at once, as shares of those on the whole card."""

    sms: int
    prefill_alone: float
    step_alone: float
    prefill: float
    step: float

    @property
    def gain(self) -> float:
        """Return how much more is done in the same time than one after the other, 0 for none."""
        return self.prefill + self.step - 1


class Work:
    """A prefill of prompts of one length, and a step of slots behind prompts of that length, over one cache."""

    def __init__(self, model: LoadedModel, shapes: Shapes, options: Options) -> None:
        self._decoder, self._fused = model.decoder, fused_kernels(shapes.prefill_kernels)
        pages, write = _kernels(shapes)
        self._attend_prompts, span = pages or attend_one_by_one, round_up(options.length + 1, SPAN_STEP)
        self._attend = pages or partial(attend_together, span=min(span, num_pages(shapes.max_sequence_length) * PAGE))
        cached = cache_shape(model.decoder.shape, shapes.pages, shapes.kv_cache_dtype)
        self._cache = KVCache(cached, model.decoder.rotary(shapes.max_sequence_length), model.decoder.parts, write)
        allocator = Allocator(num_slots=shapes.slots + options.prompts, num_pages=shapes.pages)
        running = [allocator.allocate(options.length + 1) for _ in range(shapes.slots)]
        tables = np.stack([one.page_table(num_pages(shapes.max_sequence_length)) for one in running])
        self._tables = torch.from_numpy(tables).to(model.device)
        self._positions = torch.full((shapes.slots,), options.length, device=model.device)
        self._layout = _layout(allocator, shapes, options, model.device)
        self._prompts, self._newest = (
            torch.randn(num, model.decoder.shape.hidden, device=model.device).to(model.decoder.dtype)
            for num in (len(self._layout.positions), shapes.slots)
        )

    def prefill(self) -> Tensor:
        """Run the prompts, (padded tokens, hidden); they are the same each time."""
        prompts = self._prompts.clone()
        return self._decoder.prefill(0, prompts, self._layout, self._cache, self._attend_prompts, self._fused)

    def step(self) -> Tensor:
        """Return the next token of every slot; they are at the same place each time."""
        x = self._decoder.step(0, self._newest, self._positions, self._tables, self._cache, self._attend)
        return self._decoder.logits(x).argmax(-1)

    def recorded_step(self, stream: "torch.cuda.Stream | None") -> Callable[[], object]:
        """Record the step as a CUDA graph, which runs where this stream's work does."""
        if stream is None:
            return self.step
        for _ in range(3):
            self.step()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            self.step()
        return graph.replay


@torch.inference_mode()
def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the shares that the command line names."""
    options = _options(arguments)
    pages = (options.slots + options.prompts) * num_pages(options.length + 64)
    settings = EngineSettings(
        device=options.device,
        dtype=options.dtype,
        slots=options.slots,
        capacity=options.length + 64,
        kv_cache_dtype=options.kv_cache_dtype,
        pages=pages,
    )
    with tempfile.TemporaryDirectory() as folder:
        model = write_model(options.shape, Path(folder)).load(settings)
    if model.device.type == "cuda":
        model.decoder.compile_blocks()
    # those of the slots alone are not enough: the prompts have slots of their own
    work = Work(model, replace(resolve_shapes(model, settings), pages=pages), options)
    found = measure(work, options)
    sys.stderr.write("\n".join(table(found)) + "\n")
    sys.stdout.write(json.dumps({"options": asdict(options), "shares": [asdict(one) for one in found]}) + "\n")


def measure(work: Work, options: Options) -> list[Shared]:
    """Measure every share in every round, and return the medians."""
    card = _num_sms(options)
    plain = [torch.cuda.Stream(priority=high) if card else None for high in (0, -1)]
    whole = Lane(run=work.prefill, stream=plain[0]), Lane(run=work.recorded_step(plain[1]), stream=plain[1])
    rounds: dict[int, list[Shared]] = {sms: [] for sms in options.sms}
    for _ in range(options.rounds):
        for sms in options.sms:
            _limit_products(card)
            full = [_rates([lane], options.seconds)[0] for lane in whole]
            prefills, steps = whole
            if sms:
                first, second = _divided(sms)
                prefills, steps = (
                    Lane(run=work.prefill, stream=second),
                    Lane(run=work.recorded_step(first), stream=first),
                )
                _limit_products(card - sms)
            alone = [_rates([lane], options.seconds)[0] for lane in (prefills, steps)]
            both = _rates([prefills, steps], options.seconds)
            shares = [rate / most for rate, most in zip((*alone, *both), full * 2, strict=True)]
            _say(f"{sms:3} of {card}: {full[0]:.3f} prefills/s and {full[1]:.2f} steps/s alone; shares {shares}")
            rounds[sms].append(Shared(sms=sms, **dict(zip(_SHARES, shares, strict=True))))
    return [_median(own) for own in rounds.values()]


_SHARES = ("prefill_alone", "step_alone", "prefill", "step")


def table(found: Sequence[Shared]) -> list[str]:
    """Write a line a share of the card."""
    lines = ["processors of steps   prefill alone   step alone   both at once: prefill   step    gain"]
    for one in found:
        alone = f"{one.sms:19} {one.prefill_alone:15.3f} {one.step_alone:12.3f}"
        lines.append(f"{alone} {one.prefill:23.3f} {one.step:6.3f} {one.gain:+7.1%}")
    return lines


def _rates(lanes: Sequence[Lane], seconds: float) -> list[float]:
    """Run these lanes at once, and return how many pieces a second each has done."""
    for lane in lanes:
        lane.run()  # what this many processors run for the first time may be compiled first
    if any(lane.stream for lane in lanes):
        torch.cuda.synchronize()
    own = [Lane(run=lane.run, stream=lane.stream) for lane in lanes]
    began = time.perf_counter()
    while time.perf_counter() - began < seconds or any(len(lane.ends) < _FEWEST for lane in own):
        for lane in own:
            lane.pump()
    if any(lane.stream for lane in lanes):
        torch.cuda.synchronize()
    return [lane.per_s for lane in own]


def _median(own: Sequence[Shared]) -> Shared:
    shares = {name: statistics.median(getattr(one, name) for one in own) for name in _SHARES}
    return Shared(sms=own[0].sms, **shares)


def _layout(allocator: Allocator, shapes: Shapes, options: Options, device: torch.device) -> Layout:
    width = round_up(options.length, shapes.bucket)
    segments = tuple(
        Segment(
            token_ids=np.full(options.length, 3, np.int32),
            prefix=np.zeros(0, np.int32),
            first=number * width,
            width=width,
            start=0,
            allocations=(allocator.allocate(options.length),),
            ends=True,
        )
        for number in range(options.prompts)
    )
    return layout(
        segments,
        num_padded_tokens=options.prompts * width,
        num_sampled=16,
        max_sequence_length=shapes.max_sequence_length,
        device=device,
    )


def _kernels(shapes: Shapes) -> tuple[Attend | None, Write]:
    if shapes.decode_kernel == "sdpa":
        return None, write_plainly
    from pipeline.engine.kernels.triton_kernels import attend_pages, write_pages  # with torch for GPUs alone

    return attend_pages, write_pages


def _num_sms(options: Options) -> int:
    """Return the processors of the card, 0 for a CPU."""
    if options.device == "cpu":
        return 0
    return int(torch.cuda.get_device_properties(options.device).multi_processor_count)


def _divided(sms: int) -> tuple["torch.cuda.Stream", "torch.cuda.Stream"]:
    """Return streams whose work runs on so many processors, and on all others."""
    from cuda.bindings import driver  # comes with the fused kernels' packages

    device = _made(driver.cuDeviceGet(torch.cuda.current_device()))
    every = _made(driver.cuDeviceGetDevResource(device, driver.CUdevResourceType.CU_DEV_RESOURCE_TYPE_SM))
    (own, *_), _, others = _made(driver.cuDevSmResourceSplitByCount(1, every, 0, sms), 3)
    streams = []
    for resource, priority in ((own, -1), (others, 0)):
        description = _made(driver.cuDevResourceGenerateDesc([resource], 1))
        flags = driver.CUgreenCtxCreate_flags.CU_GREEN_CTX_DEFAULT_STREAM
        context = _made(driver.cuGreenCtxCreate(description, device, flags))
        nonblocking = driver.CUstream_flags.CU_STREAM_NON_BLOCKING
        streams.append(
            torch.cuda.ExternalStream(int(_made(driver.cuGreenCtxStreamCreate(context, nonblocking, priority))))
        )
        _say(f"a part of {resource.sm.smCount} processors")
    return streams[0], streams[1]


def _made(found: tuple[Any, ...], num: int = 1) -> Any:  # noqa: ANN401 - the driver's own handles
    """Return what a call of the driver made; raises RuntimeError where it failed."""
    if int(found[0]):
        raise RuntimeError(f"the driver divides no card: {found[0]}")
    return found[1] if num == 1 else found[1 : num + 1]


def _limit_products(sms: int) -> None:
    """Let the fused products occupy so many processors: they are launched once each, and stay until all is done."""
    if not sms:
        return
    from quack.gemm_runtime import host

    from pipeline.engine.kernels import hopper

    host.get_max_active_clusters = lambda size, **_: sms // size  # it asks the driver otherwise, for the whole card
    for product in (hopper._plain, hopper._biased, hopper._added, hopper._gated):
        product._plan_cache.clear()


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def _options(arguments: Sequence[str] | None) -> Options:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=list(SHAPES), default="mistral-7b")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", choices=get_args(Dtype), default="bfloat16")
    parser.add_argument("--kv-cache-dtype", choices=get_args(KvCacheDtype))
    parser.add_argument("--sms", type=int, nargs="+", default=[0, 16, 32, 48, 64], help="processors of the steps")
    parser.add_argument("--slots", type=int, default=176)
    parser.add_argument("--length", type=int, default=2272, help="tokens of a prompt")
    parser.add_argument("--prompts", type=int, default=7, help="of a prefill")
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--rounds", type=int, default=2)
    return Options(**vars(parser.parse_args(arguments)))


if __name__ == "__main__":
    main()
