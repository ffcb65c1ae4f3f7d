"""The engine: samples in, answers out, in order. It knows neither Ray nor tables."""

import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from types import TracebackType

import numpy as np
import torch

from pipeline.engine.arithmetic import arithmetic, product_rate
from pipeline.engine.draft import Draft
from pipeline.engine.kernels.pages import num_pages
from pipeline.engine.network.load import LoadedModel, load_model, stopping_at
from pipeline.engine.runner import Runner
from pipeline.engine.scheduler import Scheduler
from pipeline.engine.sequence import PrefillGroup, Row, groups, prefix_length
from pipeline.engine.sizes import resolve
from pipeline.engine.statistics import statistics
from pipeline.preprocess.geometry import num_image_tokens
from schemas.answer import Answer, answer_from
from schemas.engine import EngineSettings, EngineStatistics, Sampling
from schemas.errors import Failure
from schemas.sample import Sample


@dataclass(slots=True, eq=False)
class _Caller:
    """Somebody in `generate`; reading as long as more rows may come before answers are waited for."""

    reading: bool = True


class Engine:
    """One loaded checkpoint. Any number of threads may generate at once: their rows share slots and prefills.

    A thread of the engine's own runs the device as long as there are callers.
    """

    def __init__(self, model: LoadedModel, settings: EngineSettings) -> None:
        self._model, self._settings = model, settings
        self._product_rate = _product_rate(model, settings) if self._on_gpu else None
        self.sizes = resolve(model, settings)
        if settings.compile or (settings.compile is None and self._on_gpu):
            model.vision.compile_layers()
            if model.compilable:
                model.decoder.compile_blocks()
        self._make_runner()
        self._changed = threading.Condition()  # guards all that follows
        self._callers: set[_Caller] = set()
        self._added: list[PrefillGroup] = []
        self._thread: threading.Thread | None = None
        self._end: BaseException | None = None  # why the engine answers nothing any more
        self._left = False  # whether a caller has gone, and with it the wish for some rows
        self._waiting_s = 0.0
        self._before = EngineStatistics()  # of the runners before this one
        self._last: EngineStatistics | None = None  # once closed

    @classmethod
    def load(cls, model: str, *, settings: EngineSettings) -> "Engine":
        """Load a hub id or a local folder."""
        return cls(load_model(model, settings), settings)

    def generate(self, samples: Iterable[Sample]) -> Iterator[Answer]:
        """One answer a prompt, in the order of samples and their prompts; reads at most `look_ahead` prompts ahead."""
        caller, ahead = _Caller(), deque[Row]()
        self._enter(caller)
        try:
            for sample in samples:
                ahead.extend(self._submit(sample))
                while len(ahead) >= self._settings.look_ahead:
                    yield self._wait(caller, ahead.popleft())
            caller.reading = False
            while ahead:
                yield self._wait(caller, ahead.popleft())
        finally:
            self._leave(caller, ahead)

    def draw_as(self, sampling: Sampling) -> None:
        """Draw tokens otherwise from now on, over the weights as they are in memory; nobody may be generating."""
        with self._changed:
            self._check_end()
            assert not self._callers
            thread = self._thread
        if thread is not None:
            thread.join()
        with self._changed:
            self._before = self.statistics()
            self._waiting_s = 0.0
            del self._runner, self._scheduler  # a device need not hold two caches
            if self._on_gpu:
                torch.cuda.empty_cache()
            self._model = stopping_at(self._model, sampling.stop)
            self._settings = replace(self._settings, sampling=sampling)
            self._make_runner()

    def statistics(self) -> EngineStatistics:
        """What has been done so far."""
        with self._changed:
            if self._last is not None:
                return self._last
            model = self._model
            work = arithmetic(model.network.config, model.decoder.shape, model.num_tokens)
            counts = self._scheduler.counts
            return self._before + statistics(counts, self._runner, self._waiting_s, work, self._product_rate)

    def close(self) -> None:
        """Let go of the weights; the engine answers nothing after, those who wait for an answer are told."""
        if self._last is not None:
            return
        self._finish(RuntimeError("the engine is closed"))
        thread = self._thread
        if thread is not None:
            thread.join()
        with self._changed:
            self._last = self.statistics()
            del self._runner, self._scheduler, self._model
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    @property
    def _on_gpu(self) -> bool:
        return self._model.device.type == "cuda"

    def _make_runner(self) -> None:
        """The network with empty slots, and what fills them."""
        self._runner = Runner(self._model, self._settings.sampling, self.sizes)
        self._scheduler = Scheduler(self._runner, self.sizes, on_gpu=self._on_gpu)
        if self._on_gpu:
            self._runner.warm_up()
            if self._settings.cuda_graphs and self._model.capturable:
                self._runner.capture()

    def _enter(self, caller: _Caller) -> None:
        with self._changed:
            self._check_end()
            self._callers.add(caller)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
                self._thread.start()

    def _leave(self, caller: _Caller, ahead: Iterable[Row]) -> None:
        with self._changed:
            for row in ahead:
                row.wanted = False
            self._callers.discard(caller)
            self._left = True
            self._changed.notify_all()

    def _submit(self, sample: Sample) -> list[Row]:
        rows = [Row(sample=sample, prompt=prompt) for prompt in sample.prompts]
        with self._changed:
            self._check_end()
            answerable = [row for row in rows if self._prepare(row)]
            if answerable:
                self._added += groups(answerable, self._most_together(answerable), self._model.image_token_id)
                self._changed.notify_all()
        return rows

    def _prepare(self, row: Row) -> bool:
        """Whether a row is one to run; others are done already."""
        prompt, sample, capacity = row.prompt, row.sample, self.sizes.capacity
        if prompt.failure is not None:
            row.failure = prompt.failure
        elif len(prompt.token_ids) >= capacity:
            needs = f"{len(prompt.token_ids)} prompt tokens and up to {prompt.max_new_tokens} new ones"
            message = f"{needs} do not fit the {capacity} tokens of a slot: raise --capacity"
            row.failure = Failure(stage="generate", type="TooLong", message=message)
        else:
            # A total would hide a row with one too few beside a row with one too many, and shift the features of both.
            found = int((prompt.token_ids == self._model.image_token_id).sum())
            expected = sum(num_image_tokens(size, self._model.vision.anyres) for size in sample.image_sizes)
            assert found == prompt.num_image_tokens == expected, (sample.id, prompt.id, found, expected)
            room = capacity - len(prompt.token_ids)
            common = prefix_length(prompt, self.sizes.bucket)
            row.prompt = replace(prompt, max_new_tokens=min(prompt.max_new_tokens, room), num_common=common)
            row.draft = Draft(self._model, self._settings.sampling, row.prompt)
        row.done = row.failure is not None
        return not row.done

    def _most_together(self, rows: Sequence[Row]) -> int:
        """Rows of a sample that the engine has places for at once, whatever else is at work."""
        return min(self.sizes.drawn, self.sizes.pages // max(num_pages(row.most_tokens) for row in rows))

    def _wait(self, caller: _Caller, row: Row) -> Answer:
        with self._changed:
            reading, caller.reading = caller.reading, False
            while not row.done:
                self._check_end()
                self._changed.wait()
            caller.reading = reading
        return _answer(row)

    def _check_end(self) -> None:
        if self._end is not None:
            raise RuntimeError(f"the engine answers nothing any more: {self._end}") from self._end

    def _finish(self, error: BaseException) -> None:
        with self._changed:
            self._end = self._end or error
            self._changed.notify_all()

    def _run(self) -> None:
        """What the engine's thread does."""
        with _Reporting(self), torch.cuda.device(self._model.device) if self._on_gpu else nullcontext():
            while self._take_in():
                if self._scheduler.step(more_to_come=any(caller.reading for caller in list(self._callers))):
                    with self._changed:
                        self._changed.notify_all()

    def _take_in(self) -> bool:
        """Wait for something to do and take it; False when nobody waits for an answer any more."""
        with self._changed:
            since = time.perf_counter()
            while not self._added and self._scheduler.idle and self._callers and self._end is None:
                self._changed.wait()
            if self._callers:
                self._waiting_s += time.perf_counter() - since
            self._scheduler.add(self._added)
            self._added = []
            if self._left:
                self._scheduler.drop_unwanted()
                self._left = False
            if self._callers and self._end is None:
                return True
            self._thread = None
            return False


class _Reporting:
    """Hands whatever ends the engine's thread to those who wait for it."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        if error is not None:
            self._engine._finish(error)
        return True


def _product_rate(model: LoadedModel, settings: EngineSettings) -> float:
    return product_rate(model.device, model.decoder.dtype, fp8=settings.quantize == "fp8")


def _answer(row: Row) -> Answer:
    """The answer of a row: generated, or failed here or before."""
    if row.failure is None and row.draft is not None and not row.draft.has_answer:
        rule = "the network's numbers must be finite, float16 overflows where bfloat16 and float32 do not"
        row.failure = Failure(stage="generate", type="NotFinite", message=f"{rule}; some were not")
    generation = None
    if row.failure is None:
        assert row.draft is not None
        generation, row.failure = row.draft.generation(), row.draft.failure
    if row.failure is not None or generation is None:
        empty = replace(row.prompt, token_ids=np.zeros(0, np.int32), num_common=0, failure=row.failure)
        return answer_from(row.sample, empty, None)
    return answer_from(row.sample, row.prompt, generation)
