"""Fakes that come in by the front door: engines that a job is given instead of the real one."""

import ctypes
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.preprocess.parts import ModelParts
from pipeline.preprocess.row_border import NOBODY, Watch
from pipeline.stages.preprocess import Preprocess
from schemas.answer import Answer, Generation, answer_from
from schemas.engine import EngineStatistics, Sampling, StepWatch, Unwatched
from schemas.job import JobSettings
from schemas.request import Request
from schemas.sample import Prompt, Sample


class EchoEngine:
    """Answers every prompt with what it was given: its text and the sizes of its images."""

    def generate(self, samples: Sequence[Sample]) -> Iterator[Answer]:
        for sample in samples:
            for prompt in sample.prompts:
                yield answer_from(sample, prompt, None if prompt.failure else self._echo(sample, prompt))

    def set_sampling(self, sampling: Sampling) -> None:
        """The text and the sizes are there to be echoed, however tokens are sampled."""

    def statistics(self) -> EngineStatistics:
        return EngineStatistics()

    def _echo(self, sample: Sample, prompt: Prompt) -> Generation:
        sizes = " ".join(f"{size.width}x{size.height}" for size in sample.image_sizes)
        return Generation(text=f"{prompt.text} {sizes}", finish_reason="stop", num_generated_tokens=1, mean_logprob=0.0)


def load_echo_engine(settings: JobSettings) -> EchoEngine:
    return EchoEngine()


def load_engine_that_counts(settings: JobSettings) -> EchoEngine:
    """An echo engine whose every answer is the number of tokens it may have, and is cut there."""
    return CountingEngine()


class CountingEngine(EchoEngine):
    """Answers with each prompt's own longest length."""

    def _echo(self, sample: Sample, prompt: Prompt) -> Generation:
        most = str(prompt.max_new_tokens)
        return Generation(text=most, finish_reason="length", num_generated_tokens=1, mean_logprob=0.0)


def load_deadly_engine(settings: JobSettings) -> EchoEngine:
    """An echo engine that every sample called `...kills-generate` or `...hangs-generate` is the end of."""
    return DeadlyEngine()


class DeadlyEngine(EchoEngine):
    """Dies as of a crash in native code, or hangs as on a broken GPU, and counts what it answered before."""

    def __init__(self) -> None:
        self._answered, self._lock = 0, threading.Lock()
        self._watch: StepWatch = Unwatched()

    def watch_steps(self, watch: StepWatch) -> None:
        self._watch = watch

    def statistics(self) -> EngineStatistics:
        return EngineStatistics(num_rows=self._answered)

    def generate(self, samples: Sequence[Sample]) -> Iterator[Answer]:
        for sample in samples:
            if any(not prompt.failure for prompt in sample.prompts):
                self._watch.begin()
                if sample.id.endswith("kills-generate"):
                    os.kill(os.getpid(), signal.SIGKILL)
                if sample.id.endswith("hangs-generate"):
                    ctypes.PyDLL(None).sleep(1000)
                self._watch.rest()
            with self._lock:
                self._answered += 1
            yield from super().generate([sample])


class DeadlyPreprocess(Preprocess):
    """Crashes for real, by reading at address 0, on every request called `...kills-preprocess`."""

    def __call__(self, table: pa.Table, watch: Watch = NOBODY) -> pa.Table:
        if any(id.endswith("kills-preprocess") for id in table["id"].to_pylist()):
            ctypes.string_at(0)
        return super().__call__(table, watch)


class StuckPreprocess(Preprocess):
    """Never comes back, in C code that holds the interpreter, from a row called `...gets-stuck`."""

    def _sample(self, row: int, request: Request, *rest: Any) -> Sample:
        if request.id.endswith("gets-stuck"):
            rest[-1].begin(row, "decode")
            ctypes.PyDLL(None).sleep(1000)
        return super()._sample(row, request, *rest)


def load_engine_that_dies(settings: JobSettings) -> EchoEngine:
    """An engine whose process does not survive its loading."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("unreachable")


def load_engine_that_raises(settings: JobSettings) -> EchoEngine:
    """An engine that cannot be loaded, and says why."""
    raise ValueError("the weights have 3 layers, the config has 2")


def load_slow_engine(settings: JobSettings) -> EchoEngine:
    """An echo engine slow enough to be killed at work; it notes its process id in `pids/` beside the output."""
    note_process(settings, "generate")
    return SlowEngine()


class SlowEngine(EchoEngine):
    """Takes 50 ms a sample."""

    def generate(self, samples: Sequence[Sample]) -> Iterator[Answer]:
        for sample in samples:
            time.sleep(0.05)
            yield from super().generate([sample])


class NotedPreprocess(Preprocess):
    """The real one; it notes its process id in `pids/` beside the output."""

    def __init__(self, settings: JobSettings, parts: ModelParts | None = None) -> None:
        super().__init__(settings, parts)
        note_process(settings, "preprocess")


def load_engine_that_takes_long(settings: JobSettings) -> EchoEngine:
    """An echo engine that takes longer to be there than Ray Data's shortest wait in a test."""
    time.sleep(5)
    return EchoEngine()


class SlowPreprocess(NotedPreprocess):
    """Takes 400 ms a row, so that a worker with two units at once prepares five rows a second."""

    def __call__(self, table: pa.Table, watch: Watch = NOBODY) -> pa.Table:
        time.sleep(0.4 * table.num_rows)
        return super().__call__(table, watch)


def note_process(settings: JobSettings, name: str) -> None:
    if "://" in settings.output:
        return
    folder = Path(settings.output).parent / "pids"
    folder.mkdir(exist_ok=True)
    (folder / f"{name}-{os.getpid()}").touch()
