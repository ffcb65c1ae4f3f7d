"""An answer while it is being drawn: its tokens, when it ends and why, and its text."""

import math
from dataclasses import replace

from tokenizers.decoders import DecodeStream
from transformers import PreTrainedTokenizerFast

from pipeline.engine.model import LoadedModel
from pipeline.engine.repetition import find_runaway
from schemas.answer import FinishReason, Generation
from schemas.engine import Sampling
from schemas.sample import Prompt


class Draft:
    """Takes one row's tokens until `finish_reason` is set; what is drawn after that is ignored.

    `first` is the row's first try, where this is its second.
    """

    def __init__(self, model: LoadedModel, sampling: Sampling, prompt: Prompt, first: "Draft | None" = None) -> None:
        assert prompt.max_new_tokens > 0
        self._model, self._prompt, self._first = model, prompt, first
        self._tokenizer = model.tokenizer
        self._stop_ids = () if sampling.ignore_eos else model.stop_ids
        self._sampling = sampling
        self._max_new_tokens = prompt.max_new_tokens
        self._watch = _StopWatch(model.tokenizer, sampling.stop) if sampling.stop else None
        self._token_ids: list[int] = []
        self._num_kept: int | None = None  # tokens before the repeats, where these were cut
        self._logprob = 0.0
        self.penalty = sampling.retry_penalty if first else sampling.repetition_penalty
        self.finish_reason: FinishReason | None = None

    @property
    def num_tokens(self) -> int:
        """Tokens drawn so far."""
        return len(self._token_ids)

    @property
    def is_second(self) -> bool:
        """Whether the row has been tried before."""
        return self._first is not None

    @property
    def finite(self) -> bool:
        """Whether every token was drawn from numbers that are numbers."""
        return math.isfinite(self._logprob)

    @property
    def has_answer(self) -> bool:
        """Whether there is something to answer with: a first try that was finite is, whatever becomes of the second."""
        return self.finite or self.is_second

    def abandon(self) -> bool:
        """End a second try that cannot go on, so that the first stands; False where this is the first."""
        if self._first is None:
            return False
        self.finish_reason = "length"
        return True

    def add(self, token_id: int, logprob: float) -> None:
        """Take the next token, and find out whether it is the last."""
        if self.finish_reason is not None:
            return
        self._token_ids.append(token_id)
        self._logprob += logprob
        stopped = (self._watch is not None and self._watch.sees(token_id)) or token_id in self._stop_ids
        early = len(self._token_ids) < self._sampling.min_new_tokens
        if stopped and not early:
            self.finish_reason = "stop"
        elif self._sampling.cut_repetition and not early:
            self._num_kept = find_runaway(self._token_ids)
            self.finish_reason = None if self._num_kept is None else "repetition"
        if self.finish_reason is None and len(self._token_ids) == self._max_new_tokens:
            self.finish_reason = "length"

    def second_try(self) -> "Draft | None":
        """The draft of another try under the retry penalty; None where this one needs none or was it."""
        if self.finish_reason != "repetition" or self._first or not self._sampling.retries or not self.finite:
            return None
        return Draft(self._model, self._sampling, self._prompt, first=self)

    def generation(self) -> Generation:
        """The finished answer; its text ends before the end token, the stop string or the repeats.

        Of two tries it is the second only if that came to its own end, with numbers that are numbers.
        """
        assert self.finish_reason is not None
        if self._first is not None and (self.finish_reason != "stop" or not self.finite):
            return replace(self._first.generation(), num_tries=2)
        return Generation(
            text=self._text(),
            finish_reason=self.finish_reason,
            num_generated_tokens=len(self._token_ids),
            mean_logprob=self._logprob / len(self._token_ids),
            num_tries=1 if self._first is None else 2,
        )

    def _text(self) -> str:
        if self.finish_reason == "stop" and self._token_ids[-1] in self._stop_ids:
            return self._decode(self._token_ids[:-1])
        if self.finish_reason == "stop" and self._watch is not None:
            return self._watch.text_before
        return self._decode(self._token_ids[: self._num_kept])

    def _decode(self, token_ids: list[int]) -> str:
        return str(self._tokenizer.decode(token_ids, skip_special_tokens=True))


class _StopWatch:
    """Finds a stop string in a text that grows token by token, looking only at what is new."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, stop: tuple[str, ...]) -> None:
        self._tokenizer = tokenizer.backend_tokenizer
        self._stream = DecodeStream(skip_special_tokens=True)
        self._stop = stop
        self._text = ""
        self.text_before = ""  # what stands before the stop string, once it is seen

    def sees(self, token_id: int) -> bool:
        """Whether a stop string has ended within the text of this token."""
        new = self._stream.step(self._tokenizer, token_id) or ""  # none until a character of several tokens is whole
        old = len(self._text)
        self._text += new
        starts = [self._text.find(stop, max(0, old - len(stop) + 1)) for stop in self._stop]
        found = [start for start in starts if start >= 0]
        if found:
            self.text_before = self._text[: min(found)]
        return bool(found)
