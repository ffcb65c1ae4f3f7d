"""The engine: samples in, answers out, in order. It knows neither Ray nor tables."""

import math
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch

from pipeline.engine.batch import Row, group, windows
from pipeline.engine.decoder import generate_batch
from pipeline.engine.model import LoadedModel, load_model
from pipeline.engine.vision import Features, sample_features
from schemas.answer import Answer, Generation, answer_from
from schemas.engine import EngineSettings
from schemas.errors import Failure
from schemas.sample import Sample

Outcome = Generation | Failure


class Engine:
    """One loaded checkpoint. Several threads may generate at once; they take turns, batch by batch."""

    def __init__(self, model: LoadedModel, settings: EngineSettings) -> None:
        self._model: LoadedModel | None = model
        self._settings = settings
        self._turn = threading.Lock()

    @classmethod
    def load(cls, model: str, *, settings: EngineSettings) -> "Engine":
        """Load a hub id or a local folder."""
        return cls(load_model(model, settings), settings)

    def generate(self, samples: Iterable[Sample]) -> Iterator[Answer]:
        """One answer a prompt, in the order of samples and their prompts; reads `look_ahead` prompts at a time."""
        for window in windows(samples, self._settings.look_ahead):
            yield from self._answer(window)

    def close(self) -> None:
        """Let go of the weights; the engine answers nothing after."""
        with self._turn:
            self._model = None
            if self._settings.device.startswith("cuda"):
                torch.cuda.empty_cache()

    def _answer(self, samples: Sequence[Sample]) -> list[Answer]:
        rows = [Row(sample=sample, prompt=prompt) for sample in samples for prompt in sample.prompts]
        outcomes: list[Outcome | None] = [None] * len(rows)
        features: dict[int, Features] = {}
        for positions in group(rows, self._settings.batch_size):
            with self._turn:
                found = halve_until_it_fits([rows[i] for i in positions], lambda part: self._run(part, features))
            for position, outcome in zip(positions, found, strict=True):
                outcomes[position] = outcome
        return [_answer_of(row, outcome) for row, outcome in zip(rows, outcomes, strict=True)]

    def _run(self, rows: Sequence[Row], features: dict[int, Features]) -> list[Generation]:
        """Generate one batch; `features` holds those of the batch before, which may share a sample with this one."""
        if self._model is None:
            raise RuntimeError("the engine is closed")
        samples = {id(row.sample): row.sample for row in rows}
        for key in features.keys() - samples.keys():
            del features[key]
        new = {key: sample for key, sample in samples.items() if key not in features}
        computed = sample_features(self._model, list(new.values()), self._settings.tiles_per_call)
        features.update(zip(new, computed, strict=True))
        shared = [features[id(row.sample)] for row in rows]
        return generate_batch(self._model, rows, shared, self._settings.sampling)


def halve_until_it_fits(rows: Sequence[Row], run: Callable[[Sequence[Row]], list[Generation]]) -> list[Outcome]:
    """What `run` gives for the rows, in parts that fit the device's memory; a row too large alone fails."""
    shortage = ""
    try:
        return [*run(rows)]
    except torch.OutOfMemoryError as error:
        shortage = str(error)
    # Out of the handler: the error's traceback no longer holds the tensors of the attempt.
    torch.cuda.empty_cache()
    if len(rows) == 1:
        return [_too_large(rows[0], shortage)]
    half = len(rows) // 2
    return halve_until_it_fits(rows[:half], run) + halve_until_it_fits(rows[half:], run)


def _too_large(row: Row, shortage: str) -> Failure:
    prompt = row.prompt
    needs = f"{len(prompt.token_ids)} prompt tokens and up to {prompt.max_new_tokens} new ones"
    return Failure(stage="generate", type="OutOfMemory", message=f"{needs} do not fit the device alone: {shortage}")


def _answer_of(row: Row, outcome: Outcome | None) -> Answer:
    """The answer of a row: generated, failed here, or failed before (no outcome)."""
    if isinstance(outcome, Generation) and not math.isfinite(outcome.mean_logprob):
        rule = "the network's numbers must be finite, float16 overflows where bfloat16 and float32 do not"
        outcome = Failure(stage="generate", type="NotFinite", message=f"{rule}; got {outcome.mean_logprob}")
    if isinstance(outcome, Failure):
        failed = replace(row.prompt, token_ids=np.zeros(0, np.int32), failure=outcome)
        return answer_from(row.sample, failed, None)
    return answer_from(row.sample, row.prompt, outcome)
