"""The tokens of one attempt at an answer: when it ends and why, and its text."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol, TypeAlias, TypeVar

from transformers import PreTrainedTokenizerFast

from pipeline.engine.network.forms import FormMatcher, Forms
from pipeline.engine.network.token_bytes import TokenBytes
from pipeline.engine.repetition import find_runaway
from pipeline.engine.stops import StopChecker, StopPosition
from schemas.answer import FinishReason, Generation, Step, TokenLogprob
from schemas.engine import Sampling
from schemas.errors import Failure
from schemas.sample import Prompt

T = TypeVar("T")
Top: TypeAlias = Sequence[tuple[int, float]]  # tokens with their log-probabilities, the likeliest first

_BROKEN = "\ufffd"  # an incomplete character is decoded to it
_LONGEST_CHARACTER = 4  # bytes, and so tokens


class Vocabulary(Protocol):
    """Decodes tokens, and names those that end an answer."""

    @property
    def tokenizer(self) -> PreTrainedTokenizerFast: ...

    @property
    def stop_ids(self) -> tuple[int, ...]: ...

    @property
    def forms(self) -> Forms: ...  # asked only where an answer has a form


class Completion:
    """Takes a sequence's tokens until `finish_reason` is set, and ignores later ones.

    `first` is the sequence's first attempt, where this is its retry under penalty. What a vocabulary's own code raises
    over these tokens is this completion's `failure`, and nobody else's.
    """

    def __init__(
        self, model: Vocabulary, sampling: Sampling, prompt: Prompt, first: "Completion | None" = None
    ) -> None:
        assert prompt.max_new_tokens > 0
        self._model, self._prompt, self._first = model, prompt, first
        self._tokenizer = model.tokenizer
        self._stop_ids = () if sampling.ignore_eos else model.stop_ids
        self._sampling = sampling
        self._max_new_tokens = prompt.max_new_tokens
        self._token_ids: list[int] = []
        self._logprobs: list[float] = []
        self._tops: list[Top] = []
        self._num_kept: int | None = None  # tokens before those that were cut as repetition
        self.penalty = sampling.retry_penalty if first else sampling.repetition_penalty
        self.finish_reason: FinishReason | None = None
        self.failure: Failure | None = None
        self._stop_checker = self._guard(self._make_stop_checker, None) if sampling.stop else None
        form = prompt.form or sampling.form
        self.form: FormMatcher | None = model.forms.begin(form) if form else None
        self._spells = form is not None and form.has_end  # whether the form itself says what the text is
        self._prefix: list[int] = prompt.token_ids[len(prompt.token_ids) - prompt.num_prefix :].tolist()

    @property
    def num_tokens(self) -> int:
        """Count the tokens so far."""
        return len(self._token_ids)

    @property
    def first(self) -> "Completion | None":
        """Return the first attempt, where this is its retry."""
        return self._first

    @property
    def is_retry(self) -> bool:
        """Tell whether the sequence has been answered once before."""
        return self._first is not None

    @property
    def is_finite(self) -> bool:
        """Tell whether every token was sampled from finite numbers."""
        return math.isfinite(sum(self._logprobs))

    @property
    def has_answer(self) -> bool:
        """Tell whether there is an answer: a retry has at least that of its first attempt, which was finite."""
        return self.is_finite or self.is_retry

    def end_retry(self) -> bool:
        """End a retry that cannot go on, so that the first attempt stands; False where this is no retry."""
        if self._first is None:
            return False
        self.finish_reason = "length"
        return True

    def append(self, token_id: int, logprob: float, top: Top = ()) -> None:
        """Take the next token, with the likeliest that stood in its place, and check whether it is the last."""
        if self.finish_reason is not None:
            return
        self._token_ids.append(token_id)
        self._logprobs.append(logprob)
        self._tops.append(top)
        early = len(self._token_ids) < self._sampling.min_new_tokens
        stopped = self._stops(token_id) or self._completes_form(token_id)
        if self.failure or (stopped and not early):
            self.finish_reason = "stop"
        elif self._sampling.cut_repetition and not early:
            self._cut_repetition()
        if self.finish_reason is None and len(self._token_ids) == self._max_new_tokens:
            self.finish_reason = "length"

    def lose_form(self) -> None:
        """End as failed: what may come next cannot be found."""
        why = (self.form and self.form.error) or "no token of the vocabulary can come next"
        message = f"the form must be one that an answer can be held to, after {self.num_tokens} tokens: {why}"
        self.failure = Failure(stage="generate", type="FormLost", message=message)
        self.finish_reason = "stop"

    def retry(self) -> "Completion | None":
        """Begin a retry under the retry penalty; None where this one needs none or was it."""
        if self.finish_reason != "repetition" or self._first or not self._sampling.retries or not self.is_finite:
            return None
        return Completion(self._model, self._sampling, self._prompt, first=self)

    def generation(self) -> Generation:
        """Return the finished answer; its text ends before the end token, the stop string or the round that was cut.

        A retry is the answer only if it came to its own end, with finite numbers and tokens that can be decoded; it
        then carries the text of the first attempt. Else the first attempt is the answer, with its failure, if any.
        """
        assert self.finish_reason is not None
        text = self._guard(self._whole_text, "")
        if self._first is not None and (self.finish_reason != "stop" or not self.is_finite or self.failure):
            first = replace(self._first.generation(), num_tries=2)
            self.failure = self._first.failure
            return first
        return Generation(
            text=text,
            finish_reason=self.finish_reason,
            num_generated_tokens=len(self._token_ids),
            num_cut_tokens=0 if self._num_kept is None else len(self._token_ids) - self._num_kept,
            mean_logprob=sum(self._logprobs) / max(1, len(self._logprobs)),
            num_tries=1 if self._first is None else 2,
            first_text=None if self._first is None else self._first._readable_text(),
            steps=None if self._sampling.logprobs is None else self._guard(self._steps, None),
        )

    def _readable_text(self) -> str | None:
        """Return the text; None where its tokens cannot be decoded."""
        text = self._guard(self._whole_text, "")
        return None if self.failure else text

    def _guard(self, step: Callable[[], T], otherwise: T) -> T:
        """Run a vocabulary's code on these tokens: the row's border, where an error of it ends no other row."""
        try:
            return step()
        except (KeyboardInterrupt, SystemExit, GeneratorExit):
            raise
        except BaseException as error:  # a panic of a Rust library is no Exception; allowed here and in row_border.py
            message = f"the vocabulary must decode what was sampled, it raised {type(error).__name__}: {error}"
            self.failure = self.failure or Failure(stage="generate", type="Undecodable", message=message)
            return otherwise

    def _make_stop_checker(self) -> StopChecker:
        return StopChecker(self._tokenizer, self._sampling.stop, self._prompt.token_ids.tolist())

    def _stops(self, token_id: int) -> bool:
        checker = self._stop_checker
        found = checker is not None and self._guard(lambda: checker.check(token_id), False)
        return found or token_id in self._stop_ids

    def _cut_repetition(self) -> None:
        runaway = find_runaway(self._token_ids, self._logprobs, self._max_new_tokens)
        if runaway is not None:
            self.finish_reason = "repetition"
            self._num_kept = self._guard(lambda: self._at_a_character(runaway.whole_rounds(self.num_tokens)), 0)

    def _at_a_character(self, num: int) -> int:
        """Return `num`, or a few tokens more or less where it is inside a character: a round may begin in one."""
        more = range(num, min(num + _LONGEST_CHARACTER, self.num_tokens + 1))
        fewer = range(num - 1, max(num - _LONGEST_CHARACTER, 0), -1)
        return next((n for n in (*more, *fewer) if not self._decode(self._token_ids[:n]).endswith(_BROKEN)), num)

    def _completes_form(self, token_id: int) -> bool:
        return self.form is not None and self.form.take(token_id)

    def _steps(self) -> tuple[Step, ...] | None:
        token_bytes = TokenBytes(self._tokenizer)

        def told(token_id: int, logprob: float) -> TokenLogprob:
            text = token_bytes.of(token_id).decode(errors="replace")
            return TokenLogprob(token_id=token_id, token=text, logprob=logprob)

        return tuple(
            Step(drawn=told(id, logprob), top=tuple(told(*one) for one in top))
            for id, logprob, top in zip(self._token_ids, self._logprobs, self._tops, strict=True)
        )

    def _whole_text(self) -> str:
        return self._prompt.answer_prefix + self._text()

    def _text(self) -> str:
        if self.finish_reason != "stop":  # a stop string that came too early ends nothing
            return self._decode(self._token_ids[: self._num_kept])
        if self._stop_checker is not None and self._stop_checker.found is not None:
            return self._before(self._stop_checker.found)
        return self._decode(self._token_ids[:-1] if self._token_ids[-1] in self._stop_ids else self._token_ids)

    def _before(self, stop: StopPosition) -> str:
        """Decode the text before a stop string, which may begin within a token."""
        if stop.token < 0:
            return ""
        whole, token_id = self._decode(self._token_ids[: stop.token]), self._token_ids[stop.token]
        added = self._tokenizer.added_tokens_decoder.get(token_id)
        if not stop.num_bytes or (added is not None and added.special):  # special tokens are not in the text
            return whole
        own = TokenBytes(self._tokenizer).of(token_id)
        with_it = self._decode(self._token_ids[: stop.token + 1])
        behind = own[stop.num_bytes :].decode(errors="replace")
        if with_it.endswith(behind):
            return with_it.removesuffix(behind)
        return whole + own[: stop.num_bytes].decode(errors="replace")

    def _decode(self, token_ids: list[int]) -> str:
        if self.form is not None and self._spells:
            return self.form.text(token_ids)
        if not self._prefix:
            return self._plain(token_ids)
        before, whole = self._plain(self._prefix), self._plain(self._prefix + token_ids)
        return whole.removeprefix(before) if whole.startswith(before) else self._plain(token_ids)

    def _plain(self, token_ids: list[int]) -> str:
        return str(self._tokenizer.decode(token_ids, skip_special_tokens=True))
