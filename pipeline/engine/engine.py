"""The engine: samples in, answers out, in order. It knows neither Ray nor tables."""

import threading
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import replace

import torch

from pipeline.engine.admit import admit, group
from pipeline.engine.arithmetic import arithmetic, product_rate
from pipeline.engine.loop import Caller, Loop
from pipeline.engine.model_runner import ModelRunner
from pipeline.engine.network.load import LoadedModel, load_model, stopping_at
from pipeline.engine.scheduler import Scheduler
from pipeline.engine.sequence import Sequence
from pipeline.engine.shapes import resolve_shapes
from pipeline.engine.statistics import make_statistics
from schemas.answer import Answer
from schemas.engine import EngineSettings, EngineStatistics, Sampling, StepWatch, Unwatched
from schemas.sample import Sample


class Engine:
    """One loaded checkpoint. Any number of threads may generate at once: their prompts share slots and prefills."""

    def __init__(self, model: LoadedModel, settings: EngineSettings) -> None:
        self._model, self._settings = model, settings
        self._product_rate = _product_rate(model, settings) if self._on_gpu else None
        self.shapes = resolve_shapes(model, settings)
        if settings.compile or (settings.compile is None and self._on_gpu):
            model.vision.compile_layers()
            if model.compilable:
                model.decoder.compile_blocks()
        self._watch: StepWatch = Unwatched()
        self._lock = threading.RLock()  # guards all that follows, which `set_sampling` and `close` replace
        self._runner, self._loop = self._start()
        self._before = EngineStatistics()  # of the runners before this one
        self._last: EngineStatistics | None = None  # once closed

    @classmethod
    def load(cls, model: str, *, settings: EngineSettings) -> "Engine":
        """Load a hub id or a local folder; raises Refused for a model or settings that cannot run."""
        return cls(load_model(model, settings), settings)

    def generate(self, samples: Iterable[Sample]) -> Iterator[Answer]:
        """Yield one answer a prompt, in the order of samples and their prompts; reads `look_ahead` prompts ahead.

        Raises RuntimeError once the engine is closed, or has ended by an error.
        """
        caller, unanswered = self._enter(), deque[Sequence]()
        try:
            for sample in samples:
                unanswered.extend(self._submit(sample, caller))
                while len(unanswered) >= self._settings.look_ahead:
                    yield self._next_answer(caller, unanswered)
            caller.reading = False
            while unanswered:
                yield self._next_answer(caller, unanswered)
        finally:
            self._loop.leave(caller, unanswered)

    def set_sampling(self, sampling: Sampling) -> None:
        """Sample otherwise from now on, over the same weights in memory; nobody may be generating.

        Raises RuntimeError once the engine is closed, or has ended by an error.
        """
        with self._lock:
            self._loop.check()
            assert not self._loop.has_callers
            self._loop.join()
            self._before = self.statistics()
            del self._runner, self._loop  # a device need not hold two caches
            if self._on_gpu:
                torch.cuda.empty_cache()
            self._model = stopping_at(self._model, sampling.stop)
            self._settings = replace(self._settings, sampling=sampling)
            self._runner, self._loop = self._start()

    def watch_steps(self, watch: StepWatch) -> None:
        """Tell this watch of every step from now on."""
        with self._lock:
            self._watch = self._loop.watch = watch

    def statistics(self) -> EngineStatistics:
        """Return what has been done so far; any thread may ask at any time."""
        with self._lock:
            if self._last is not None:
                return self._last
            runner, model = self._runner, self._model
            work = arithmetic(model.network.config, model.decoder.shape, model.num_tokens)
            seconds = runner.stopwatch.seconds()
            num_devices = len({part.device for part in model.decoder.parts})
            rate = self._product_rate and self._product_rate * num_devices
            return self._before + make_statistics(runner.counters, seconds, self._loop.waiting_s, work, rate)

    def close(self) -> None:
        """Let go of the weights; those who wait for an answer, now or later, get a RuntimeError."""
        with self._lock:
            if self._last is not None:
                return
            self._loop.close(RuntimeError("the engine is closed"))
            self._last = self.statistics()
            del self._runner, self._model
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    @property
    def _on_gpu(self) -> bool:
        return self._model.device.type == "cuda"

    def _start(self) -> tuple[ModelRunner, Loop]:
        """Make the runner, with empty slots, and the loop that fills them."""
        runner = ModelRunner(self._model, self._settings.sampling, self.shapes)
        if self._on_gpu:
            runner.warm_up()
            if self._settings.cuda_graphs and self._model.capturable:
                runner.capture()
        loop = Loop(Scheduler(runner, self.shapes, on_gpu=self._on_gpu), self._model.device, self._watch)
        return runner, loop

    def _enter(self) -> Caller:
        with self._lock:
            return self._loop.enter()

    def _submit(self, sample: Sample, caller: Caller) -> list[Sequence]:
        with self._lock:
            self._loop.check()
            sequences = admit(sample, self._model, self._settings.sampling, self.shapes, caller.number)
            self._loop.add(group(sequences, self._model.image_token_id, self.shapes))
        return sequences

    def _next_answer(self, caller: Caller, unanswered: deque[Sequence]) -> Answer:
        self._loop.wait(caller, unanswered[0])
        return unanswered.popleft().answer()


def _product_rate(model: LoadedModel, settings: EngineSettings) -> float:
    return product_rate(model.device, model.decoder.dtype, fp8=settings.quantize == "fp8")
