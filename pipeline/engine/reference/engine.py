"""The reference engine: transformers' `generate` over left-padded batches, for checkpoints that our own engine does not
know. Same samples, same answers, same rules of when an answer ends; slower, as nothing is refilled in flight."""

import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from pipeline.engine.completion import Completion
from pipeline.engine.reference.inputs import batch_inputs
from pipeline.engine.reference.load import ReferenceModel, load_reference, stopping_at
from pipeline.engine.reference.memory import rows_in_memory
from pipeline.engine.sampling import Sampler, SamplingState, sequence_seed
from pipeline.engine.slots import SlotMasks, fill_masks
from schemas.answer import Answer, answer_from
from schemas.engine import EngineSettings, EngineStatistics, Sampling
from schemas.errors import Failure, Refused
from schemas.sample import Prompt, Sample


@dataclass(slots=True, eq=False)
class _Row:
    """One prompt on its way to an answer."""

    sample: Sample
    prompt: Prompt
    completion: Completion | None = None
    failure: Failure | None = None


class ReferenceEngine:
    """One loaded checkpoint. Threads may generate at once; the batch of one runs after that of another."""

    def __init__(self, model: ReferenceModel, settings: EngineSettings) -> None:
        self._model, self._settings = model, settings
        self.set_sampling(settings.sampling)
        self._batch_size = settings.slots or self._fitting()  # halved where memory is short, for good
        self._lock = threading.Lock()
        self._counts = EngineStatistics()

    @classmethod
    def load(cls, model: str, *, settings: EngineSettings) -> "ReferenceEngine":
        """Load a hub id or a local folder; raises Refused for a model or settings that cannot run."""
        return cls(load_reference(model, settings), settings)

    def generate(self, samples: Iterable[Sample]) -> Iterator[Answer]:
        """Yield one answer a prompt, in the order of samples and their prompts."""
        coming = (self._admit(sample, prompt) for sample in samples for prompt in sample.prompts)
        while rows := list(islice(coming, self._settings.look_ahead)):
            waiting = [row for row in rows if row.completion is not None]
            waiting.sort(key=lambda row: len(row.prompt.token_ids), reverse=True)  # the largest batch comes first
            self._run_all(waiting)
            self._run_all([row for row in rows if self._retry(row)])
            yield from map(self._answer, rows)

    def _fitting(self) -> int:
        """Return the rows of a batch: on a GPU what its free memory holds."""
        if self._model.device.type != "cuda":
            return self._settings.batch_size
        free, _ = torch.cuda.mem_get_info(self._model.device)
        return rows_in_memory(self._model.network.config, self._settings, free)

    def set_sampling(self, sampling: Sampling) -> None:
        """Sample otherwise from now on; nobody may be generating."""
        self._model = stopping_at(self._model, sampling.stop)
        if sampling.takes_forms:
            self._model.forms.prepare(sampling.form)
        self._sampling = sampling

    def statistics(self) -> EngineStatistics:
        """Return what has been done so far."""
        return self._counts

    def close(self) -> None:
        """Let go of the weights."""
        del self._model

    def _admit(self, sample: Sample, prompt: Prompt) -> _Row:
        if prompt.failure is not None:
            return _Row(sample, prompt, failure=prompt.failure)
        most = self._settings.capacity
        if most is not None and len(prompt.token_ids) >= most:
            message = f"{len(prompt.token_ids)} prompt tokens do not fit --capacity {most}: raise it"
            return _Row(sample, prompt, failure=Failure(stage="generate", type="TooLong", message=message))
        if most is not None:
            prompt = replace(prompt, max_new_tokens=min(prompt.max_new_tokens, most - len(prompt.token_ids)))
        try:
            return _Row(sample, prompt, Completion(self._model, self._sampling, prompt))
        except Refused as error:  # of the row's own form
            return _Row(sample, prompt, failure=Failure(stage="generate", type="FormRefused", message=str(error)))

    def _retry(self, row: _Row) -> bool:
        """Begin the retry under penalty of an answer that was cut as repetition; False where there is none."""
        again = None if row.completion is None or row.failure else row.completion.retry()
        row.completion = again or row.completion
        return again is not None

    def _run_all(self, rows: Sequence[_Row]) -> None:
        """Generate for these rows in their order, batch by batch."""
        while rows:
            batch = rows[: self._batch_size]
            if self._run(batch):
                rows = rows[len(batch) :]

    def _run(self, batch: Sequence[_Row]) -> bool:
        """Generate for these rows. Where memory runs out halve the batch from now on, and return False; a row that is
        alone fails then."""
        shortage: str | None = None
        with self._lock:
            try:
                self._generate(batch)
            except torch.OutOfMemoryError as error:
                shortage = str(error)
        if shortage is None:
            return True
        # Out of the handler: there the error's traceback holds the tensors of the attempt.
        torch.cuda.empty_cache()
        self._counts += EngineStatistics(num_out_of_memory=1)
        if len(batch) > 1:
            self._batch_size = max(1, len(batch) // 2)
            for row in batch:
                first = row.completion.first if row.completion else None
                row.completion = Completion(self._model, self._sampling, row.prompt, first=first)
            return False
        message = f"the device's memory must hold one row, it does not: {shortage}"
        batch[0].failure = Failure(stage="generate", type="OutOfMemory", message=message)
        return True

    def _generate(self, batch: Sequence[_Row]) -> None:
        model = self._model
        inputs = batch_inputs(
            [(row.sample, row.prompt) for row in batch],
            model.scale,
            pad_token_id=model.stop_ids[0],
            dtype=model.network.dtype,
            device=model.device,
        )
        drawing = _Drawing(model, self._sampling, batch, inputs)
        config = GenerationConfig(
            do_sample=False,  # what is drawn is the one token that `drawing` leaves
            max_new_tokens=max(row.prompt.max_new_tokens for row in batch),
            pad_token_id=model.stop_ids[0],
        )
        network: Any = model.network
        began = time.perf_counter()
        with torch.inference_mode():
            network.generate(
                **inputs,
                generation_config=config,
                logits_processor=LogitsProcessorList([drawing]),
                stopping_criteria=StoppingCriteriaList([_Ends(drawing)]),
            )
        self._counts += EngineStatistics(
            num_rows=len(batch),
            num_images=sum(len(row.sample.image_sizes) for row in batch),
            num_tiles=sum(len(row.sample.tiles) for row in batch),
            num_prompt_tokens=sum(len(row.prompt.token_ids) for row in batch),
            num_prefilled_tokens=sum(len(row.prompt.token_ids) for row in batch),
            num_padded_tokens=inputs["input_ids"].numel(),
            num_answer_tokens=sum(row.completion.num_tokens for row in batch if row.completion),
            num_prefills=1,
            num_decode_steps=drawing.step,
            num_slot_steps=drawing.step * len(batch),
            decode_s=time.perf_counter() - began,  # `generate` does not tell what takes it
        )

    def _answer(self, row: _Row) -> Answer:
        completion, failure = row.completion, row.failure
        if failure is None and completion is not None and not completion.has_answer:
            rule = "the network's numbers must be finite, float16 overflows where bfloat16 and float32 do not"
            failure = Failure(stage="generate", type="NotFinite", message=f"{rule}; some were not")
        if failure is None and completion is not None:
            generation, failure = completion.generation(), completion.failure
            if failure is None:
                return answer_from(row.sample, row.prompt, generation)
        return answer_from(row.sample, _without_tokens(row.prompt, failure), None)


def _without_tokens(prompt: Prompt, failure: Failure | None) -> Prompt:
    return replace(prompt, token_ids=np.zeros(0, np.int32), num_common=0, failure=failure)


class _Drawing(LogitsProcessor):  # type: ignore[misc,unused-ignore]
    """Draws as our engine does, by each row's own seed and penalty, and leaves `generate` no other token."""

    def __init__(self, model: ReferenceModel, sampling: Sampling, rows: Sequence[_Row], inputs: dict[str, Any]) -> None:
        device = model.device
        self.rows, self.step = rows, 0
        self.logprobs: list[list[Any]] = []  # of each row's token, and of the likeliest in its place
        stop_ids = torch.tensor(model.stop_ids, device=device)
        self._forms = model.forms
        self._sampler = Sampler(sampling, model.num_tokens, stop_ids, model.forms.num_words)
        self._masks = SlotMasks(len(rows), self._sampler.num_words, pinned=False)
        seeds = [sequence_seed(sampling.seed, row.sample.id, row.prompt.id) for row in rows]
        penalties = [row.completion.penalty if row.completion else 1.0 for row in rows]
        self._seeds = torch.tensor(seeds, dtype=torch.int64, device=device)
        self._penalties = torch.tensor(penalties, device=device) if sampling.penalises else None
        self._seen = self._tokens_seen(inputs, device) if sampling.penalises else None

    def _tokens_seen(self, inputs: dict[str, Any], device: torch.device) -> Tensor:
        seen = torch.zeros((len(self.rows), self._sampler.width), dtype=torch.bool, device=device)
        for row, (ids, mask) in enumerate(zip(inputs["input_ids"], inputs["attention_mask"], strict=True)):
            own = ids[mask.bool()]
            seen[row, own[own < self._sampler.width]] = True
        return seen

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return scores in which one token of each row is possible."""
        steps = torch.full_like(self._seeds, self.step)
        state = SamplingState(
            seeds=self._seeds, steps=steps, seen=self._seen, penalties=self._penalties, masks=self._next_masks()
        )
        sampled = self._sampler.sample(scores, state)
        self.step, self.logprobs = self.step + 1, [part.tolist() for part in sampled.parts[1:]]
        return torch.full_like(scores, -torch.inf).scatter_(1, sampled.token_ids[:, None], 0.0)

    def _next_masks(self) -> Tensor | None:
        """Return what each row's form allows next; None in a job without forms."""
        if not self._sampler.num_words:
            return None
        completions = {row: one.completion for row, one in enumerate(self.rows) if one.completion}
        return fill_masks(self._masks, self._forms, completions).to(self._seeds.device)


class _Ends(StoppingCriteria):  # type: ignore[misc,unused-ignore]
    """Hands every row its token, and ends those whose completion says so."""

    def __init__(self, drawing: _Drawing) -> None:
        self._drawing = drawing

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: object) -> Tensor:
        """Return for each row whether its answer is complete."""
        tokens = input_ids[:, -1].tolist()
        done = []
        logprobs, *top = self._drawing.logprobs
        for number, (row, token_id) in enumerate(zip(self._drawing.rows, tokens, strict=True)):
            assert row.completion is not None
            likeliest = list(zip(*(part[number] for part in top), strict=True))
            row.completion.append(token_id, logprobs[number], likeliest)
            done.append(row.completion.finish_reason is not None)
        return torch.tensor(done, device=input_ids.device)
