"""An answer while it is being drawn: its tokens, when it ends and why, and its text."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from pipeline.engine.network.load import LoadedModel
from pipeline.engine.repetition import find_runaway
from pipeline.engine.stops import Pieces, Place, StopWatch
from schemas.answer import FinishReason, Generation
from schemas.engine import Sampling
from schemas.errors import Failure
from schemas.sample import Prompt

T = TypeVar("T")

_BROKEN = "\ufffd"  # what an incomplete character is decoded to
_LONGEST_CHARACTER = 4  # bytes, and so tokens


class Draft:
    """Takes one row's tokens until `finish_reason` is set; what is drawn after that is ignored.

    `first` is the row's first try, where this is its second. What a vocabulary's own code raises over these tokens is
    this row's `failure`, and nobody else's.
    """

    def __init__(self, model: LoadedModel, sampling: Sampling, prompt: Prompt, first: "Draft | None" = None) -> None:
        assert prompt.max_new_tokens > 0
        self._model, self._prompt, self._first = model, prompt, first
        self._tokenizer = model.tokenizer
        self._stop_ids = () if sampling.ignore_eos else model.stop_ids
        self._sampling = sampling
        self._max_new_tokens = prompt.max_new_tokens
        self._token_ids: list[int] = []
        self._logprobs: list[float] = []
        self._num_kept: int | None = None  # tokens before what was cut as repetition
        self.penalty = sampling.retry_penalty if first else sampling.repetition_penalty
        self.finish_reason: FinishReason | None = None
        self.failure: Failure | None = None
        self._watch = self._own(self._watch_for_stops, None) if sampling.stop else None

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
        return math.isfinite(sum(self._logprobs))

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
        self._logprobs.append(logprob)
        early = len(self._token_ids) < self._sampling.min_new_tokens
        stopped = self._stops(token_id)
        if self.failure or (stopped and not early):
            self.finish_reason = "stop"
        elif self._sampling.cut_repetition and not early:
            self._cut_repetition()
        if self.finish_reason is None and len(self._token_ids) == self._max_new_tokens:
            self.finish_reason = "length"

    def second_try(self) -> "Draft | None":
        """The draft of another try under the retry penalty; None where this one needs none or was it."""
        if self.finish_reason != "repetition" or self._first or not self._sampling.retries or not self.finite:
            return None
        return Draft(self._model, self._sampling, self._prompt, first=self)

    def generation(self) -> Generation:
        """The finished answer; its text ends before the end token, the stop text or the round that was cut.

        Of two tries it is the second only if that came to its own end, with numbers that are numbers and tokens that
        can be decoded; it then says what the first had read. Else the first one's failure is the row's, if it has one.
        """
        assert self.finish_reason is not None
        text = self._own(self._text, "")
        if self._first is not None and (self.finish_reason != "stop" or not self.finite or self.failure):
            first = replace(self._first.generation(), num_tries=2)
            self.failure = self._first.failure
            return first
        return Generation(
            text=text,
            finish_reason=self.finish_reason,
            num_generated_tokens=len(self._token_ids),
            num_cut_tokens=0 if self._num_kept is None else len(self._token_ids) - self._num_kept,
            mean_logprob=sum(self._logprobs) / len(self._logprobs),
            num_tries=1 if self._first is None else 2,
            first_text=None if self._first is None else self._first._readable_text(),
        )

    def _readable_text(self) -> str | None:
        """The text; None where its tokens cannot be decoded."""
        text = self._own(self._text, "")
        return None if self.failure else text

    def _own(self, step: Callable[[], T], otherwise: T) -> T:
        """Run what a vocabulary's code does with this row's tokens: the row's border, no other row is to end by it."""
        try:
            return step()
        except (KeyboardInterrupt, SystemExit, GeneratorExit):
            raise
        except BaseException as error:  # a panic of a Rust library is no Exception; allowed here and in row_border.py
            message = f"the vocabulary must read what was drawn, it raised {type(error).__name__}: {error}"
            self.failure = self.failure or Failure(stage="generate", type="Undecodable", message=message)
            return otherwise

    def _watch_for_stops(self) -> StopWatch:
        return StopWatch(self._tokenizer, self._sampling.stop, self._prompt.token_ids.tolist())

    def _stops(self, token_id: int) -> bool:
        watch = self._watch
        seen = watch is not None and self._own(lambda: watch.sees(token_id), False)
        return seen or token_id in self._stop_ids

    def _cut_repetition(self) -> None:
        runaway = find_runaway(self._token_ids, self._logprobs, self._max_new_tokens)
        if runaway is not None:
            self.finish_reason = "repetition"
            self._num_kept = self._own(lambda: self._at_a_character(runaway.whole_rounds(self.num_tokens)), 0)

    def _at_a_character(self, num: int) -> int:
        """So many tokens, or a few more or less where these end inside a character: a round may begin in one."""
        more = range(num, min(num + _LONGEST_CHARACTER, self.num_tokens + 1))
        fewer = range(num - 1, max(num - _LONGEST_CHARACTER, 0), -1)
        return next((n for n in (*more, *fewer) if not self._decode(self._token_ids[:n]).endswith(_BROKEN)), num)

    def _text(self) -> str:
        if self._watch is not None and self._watch.found is not None:
            return self._before(self._watch.found)
        if self.finish_reason == "stop" and self._token_ids[-1] in self._stop_ids:
            return self._decode(self._token_ids[:-1])
        return self._decode(self._token_ids[: self._num_kept])

    def _before(self, place: Place) -> str:
        """The text before a place, which may be within a token."""
        if place.token < 0:
            return ""
        whole, token_id = self._decode(self._token_ids[: place.token]), self._token_ids[place.token]
        added = self._tokenizer.added_tokens_decoder.get(token_id)
        if not place.num_bytes or (added is not None and added.special):  # these are not in the text
            return whole
        piece = Pieces(self._tokenizer).of(token_id)
        with_it = self._decode(self._token_ids[: place.token + 1])
        behind = piece[place.num_bytes :].decode(errors="replace")
        if with_it.endswith(behind):
            return with_it.removesuffix(behind)
        return whole + piece[: place.num_bytes].decode(errors="replace")

    def _decode(self, token_ids: list[int]) -> str:
        return str(self._tokenizer.decode(token_ids, skip_special_tokens=True))
