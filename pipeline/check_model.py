"""Check a model: the same questions to our engine and to transformers, compared token for token."""

import gc
import resource
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from transformers import GenerationConfig, PreTrainedTokenizerFast

from pipeline.check_questions import check_samples
from pipeline.engine.engine import Engine
from pipeline.engine.network.load import load_model, load_network, stop_ids_of
from pipeline.engine.reference.inputs import batch_inputs
from pipeline.preprocess.files import load_processor
from pipeline.preprocess.pixels import read_scale
from pipeline.stages.engine_settings import engine_settings
from pipeline.stages.preprocess import Preprocess
from pipeline.weights.hub import locate
from schemas.engine import EngineSettings
from schemas.job import JobSettings
from schemas.sample import Prompt, Sample


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One question in one precision: the tokens of both, and how close the candidates of the first difference were."""

    question: str
    ours: tuple[int, ...]
    theirs: tuple[int, ...]
    ours_text: str = ""
    theirs_text: str = ""
    margin: float | None = None  # nats between transformers' token and ours, where they first differ, as it sees them
    failure: str | None = None  # the row could not be asked

    @property
    def first_difference(self) -> int | None:
        """Return the first token in which they differ; None where they are equal."""
        if self.ours == self.theirs:
            return None
        pairs = zip(self.ours, self.theirs, strict=False)
        shorter = min(len(self.ours), len(self.theirs))
        return next((number for number, (one, other) in enumerate(pairs) if one != other), shorter)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Seconds, tokens and memory of one side."""

    load_s: float
    answer_s: float
    num_tokens: int
    memory_bytes: int  # the most on the GPU; of the process where there is none


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """All questions in one precision."""

    precision: str
    device: str
    comparisons: tuple[Comparison, ...]
    ours: Cost
    theirs: Cost

    @property
    def num_equal(self) -> int:
        """Count the questions with equal answers."""
        return sum(one.first_difference is None and one.failure is None for one in self.comparisons)


def check_model(settings: JobSettings, *, on_gpu: bool) -> Iterator[Checked]:
    """Yield the comparison in float32, then in the job's precision and weights where these are others."""
    samples = check_samples(Preprocess(settings))
    own = engine_settings(settings, on_gpu=on_gpu)
    exact = replace(own, dtype="float32", quantize=None, kv_cache_dtype=None)
    for chosen in dict.fromkeys((exact, own)):
        yield _check(settings, samples, chosen)


def _check(settings: JobSettings, samples: Sequence[Sample], chosen: EngineSettings) -> Checked:
    model = locate(settings.model)
    reference = _Reference(model, chosen)
    answers = [reference.answer(sample, prompt) for sample, prompt in _asked(samples)]
    theirs = reference.cost(answers)
    tokenizer = reference.tokenizer
    del reference
    _forget()
    tokens, ours = _ask_engine(model, chosen, samples)
    comparisons = [
        _compare(asked, mine, other, tokenizer)
        for asked, mine, other in zip(_asked(samples), tokens, answers, strict=True)
    ]
    _forget()
    return Checked(
        precision=_precision(chosen), device=chosen.device, comparisons=tuple(comparisons), ours=ours, theirs=theirs
    )


def _precision(settings: EngineSettings) -> str:
    """Say in what a model runs: `bfloat16, fp8 weights, int8 keys and values`."""
    fewer = ((settings.quantize, "weights"), (settings.kv_cache_dtype, "keys and values"))
    return ", ".join([settings.dtype, *(f"{bits} {what}" for bits, what in fewer if bits)])


def _asked(samples: Sequence[Sample]) -> list[tuple[Sample, Prompt]]:
    return [(sample, prompt) for sample in samples for prompt in sample.prompts]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answered:
    """Tokens that transformers generated, without what ends them, and its log-probabilities at each step."""

    tokens: tuple[int, ...]
    logprobs: torch.Tensor  # (steps, vocabulary)


class _Reference:
    """transformers' network and its own `generate`, one question at a time."""

    def __init__(self, model: str, settings: EngineSettings) -> None:
        began = time.monotonic()
        # Our own 8-bit products have nothing like them there: the reference keeps the precision that they stand for.
        settings = replace(settings, quantize=None) if settings.quantize == "fp8" else settings
        self._network = load_network(model, settings)
        processor = load_processor(model, settings.revision)
        self.tokenizer: PreTrainedTokenizerFast = processor.tokenizer
        self._scale = read_scale(processor.image_processor)
        self._stop_ids = stop_ids_of(self._network, self.tokenizer, ())
        self._network.generation_config = GenerationConfig()  # `generate` would fill in what the settings do not ask
        self._load_s, self._answer_s = time.monotonic() - began, 0.0

    def answer(self, sample: Sample, prompt: Prompt) -> _Answered | None:
        """Return what is generated greedily; None where there is nothing to ask."""
        if prompt.failure:
            return None
        network: Any = self._network
        inputs = batch_inputs(
            [(sample, prompt)], self._scale, pad_token_id=self._stop_ids[0], dtype=network.dtype, device=network.device
        )
        config = GenerationConfig(
            do_sample=False,
            max_new_tokens=prompt.max_new_tokens,
            eos_token_id=list(self._stop_ids),
            pad_token_id=self._stop_ids[0],
            output_logits=True,
            return_dict_in_generate=True,
        )
        began = time.monotonic()
        with torch.inference_mode():
            output = network.generate(**inputs, generation_config=config)
        new = output.sequences[0, inputs["input_ids"].shape[1] :].tolist()
        self._answer_s += time.monotonic() - began
        logprobs = torch.stack([step[0].float().log_softmax(-1).cpu() for step in output.logits])
        return _Answered(tokens=tuple(t for t in new if t not in self._stop_ids), logprobs=logprobs)

    def cost(self, answers: Sequence[_Answered | None]) -> Cost:
        """Return what these answers took."""
        num_tokens = sum(len(answer.tokens) for answer in answers if answer)
        return Cost(load_s=self._load_s, answer_s=self._answer_s, num_tokens=num_tokens, memory_bytes=_memory())


class _Spelled:
    """Decodes token ids to their numbers, so that the engine's texts are its tokens."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.added_tokens_decoder = tokenizer.added_tokens_decoder

    @staticmethod
    def decode(token_ids: list[int], skip_special_tokens: bool) -> str:
        """Return the numbers, whatever the tokens are."""
        return " ".join(map(str, token_ids))


def _ask_engine(
    model: str, settings: EngineSettings, samples: Sequence[Sample]
) -> tuple[list[tuple[int, ...] | str], Cost]:
    """Return the tokens of our engine, or why there are none, all questions in one batch."""
    began = time.monotonic()
    loaded = load_model(model, settings)
    spelled = cast(PreTrainedTokenizerFast, _Spelled(loaded.tokenizer))
    engine = Engine(replace(loaded, tokenizer=spelled), settings)
    load_s, began = time.monotonic() - began, time.monotonic()
    answers = list(engine.generate(samples))
    answer_s, memory = time.monotonic() - began, _memory()
    engine.close()
    tokens: list[tuple[int, ...] | str] = [
        f"{one.error_type}: {one.error_message}" if one.text is None else tuple(map(int, one.text.split()))
        for one in answers
    ]
    count = sum(len(one) for one in tokens if isinstance(one, tuple))
    return tokens, Cost(load_s=load_s, answer_s=answer_s, num_tokens=count, memory_bytes=memory)


def _compare(
    prompt_of: tuple[Sample, Prompt],
    ours: tuple[int, ...] | str,
    theirs: _Answered | None,
    tokenizer: PreTrainedTokenizerFast,
) -> Comparison:
    sample, prompt = prompt_of
    question = sample.id if len(sample.prompts) == 1 else f"{sample.id}, {prompt.id}"
    if prompt.failure or theirs is None or isinstance(ours, str):
        why = f"{prompt.failure.type}: {prompt.failure.message}" if prompt.failure else str(ours)
        return Comparison(question=question, ours=(), theirs=(), failure=why)
    compared = Comparison(
        question=question,
        ours=ours,
        theirs=theirs.tokens,
        ours_text=str(tokenizer.decode(list(ours))),
        theirs_text=str(tokenizer.decode(list(theirs.tokens))),
    )
    number = compared.first_difference
    if number is None:
        return compared
    best = float(theirs.logprobs[number].max()) if number < len(theirs.logprobs) else None
    # Where our answer ended there is no token of ours to look up: an end token is what it chose instead.
    own = float(theirs.logprobs[number, ours[number]]) if best is not None and number < len(ours) else None
    return replace(compared, margin=None if best is None or own is None else best - own)


def _memory() -> int:
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _forget() -> None:
    """Give a card back what nobody holds any more, and count its memory anew."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
