"""Forms at work: which tokens may come next in an answer that has one, as bit masks for all slots of a step at once."""

import json
import os
import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from pipeline.engine.network.token_bytes import TokenBytes
from pipeline.preprocess.forms import grammar_of, limits_of_forms
from schemas.errors import Refused
from schemas.form import Form

if TYPE_CHECKING:
    from llguidance import LLExecutor, LLMatcher, LLTokenizer

Words = npt.NDArray[np.int32]

ALL = -1  # a word of a mask in which every token is allowed
_WORD = 32  # tokens
_MOST_GRAMMARS = 256  # kept at once: rows may each have their own
_MOST_THREADS = 16
_SPECIAL = {"special": True, "normalized": False, "single_word": False, "lstrip": False, "rstrip": False}


def num_words(num_tokens: int) -> int:
    """Return how many words a mask of so many tokens has."""
    return -(-num_tokens // _WORD)


class FormMatcher:
    """Follows one answer through its form, token by token."""

    def __init__(self, matcher: "LLMatcher", first: Words, *, drops_space: bool, token_bytes: TokenBytes) -> None:
        self._matcher, self._first, self._drops_space = matcher, first, drops_space
        self._token_bytes = token_bytes
        self._num_taken = 0

    @property
    def matcher(self) -> "LLMatcher":
        """Return what computes the masks."""
        return self._matcher

    @property
    def first(self) -> Words | None:
        """Return the mask of the first token, which all answers of this form share; None once that is taken."""
        return None if self._num_taken else self._first

    def take(self, token_id: int) -> bool:
        """Take the answer's next token; tell whether the form is complete and nothing can follow."""
        self._num_taken += 1
        return bool(self._matcher.consume_token(token_id) and self._matcher.is_stopped())

    @property
    def error(self) -> str | None:
        """Return why the form cannot be followed any further, None where it can."""
        return str(self._matcher.get_error()).partition("\n")[0] if self._matcher.is_error() else None

    def text(self, token_ids: Sequence[int]) -> str:
        """Return the text of an answer's tokens, as the form has it; a character that was cut is left out."""
        text = b"".join(map(self._token_bytes.of, token_ids)).decode(errors="ignore")
        return text.removeprefix(" ") if self._drops_space else text


class Forms:
    """The forms of one vocabulary; any thread may begin an answer."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, stop_ids: Sequence[int], num_tokens: int) -> None:
        self._tokenizer, self._stop_ids = tokenizer, tuple(stop_ids)
        self.num_words = num_words(max(num_tokens, max(tokenizer.get_vocab().values()) + 1))
        self._token_bytes = TokenBytes(tokenizer)
        self._lock = threading.Lock()  # guards all that follows
        self._made: tuple[LLTokenizer, LLExecutor] | None = None
        self._begins: dict[Form, FormMatcher] = {}

    def prepare(self, form: Form | None) -> None:
        """Read the vocabulary, which takes seconds, and a form; raises Refused for one that it cannot write."""
        with self._lock:
            self._parts()
        if form is not None:
            self.begin(form)

    def begin(self, form: Form) -> FormMatcher:
        """Begin an answer of this form; raises Refused where the vocabulary cannot write any."""
        with self._lock:
            found = self._begins.pop(form, None) or self._first_of(form)
            if len(self._begins) >= _MOST_GRAMMARS:
                del self._begins[next(iter(self._begins))]
            self._begins[form] = found  # the last one used stands last
            return self._copy(found)

    def fill(self, matchers: Mapping[int, FormMatcher], masks: Tensor) -> list[int]:
        """Write the masks of these rows' next tokens, (rows, words) int32, at once over the machine's cores.

        Return the rows whose form cannot be followed further; their masks allow every token.
        """
        assert masks.is_contiguous()
        assert masks.dtype is torch.int32
        words: Words = masks.numpy()
        later = {}
        for row, matcher in matchers.items():
            if matcher.first is not None:
                words[row] = matcher.first
            else:
                later[row] = matcher
        if later:
            words[list(later)] = 0
            self._executor.unsafe_compute_mask_ptr(
                [(matcher.matcher, row) for row, matcher in later.items()],
                words.ctypes.data,
                words.strides[0],
                len(words),
            )
        lost = [row for row, matcher in later.items() if matcher.error is not None or not words[row].any()]
        words[lost] = ALL
        return lost

    @property
    def _executor(self) -> "LLExecutor":
        with self._lock:
            return self._parts()[1]

    def _parts(self) -> "tuple[LLTokenizer, LLExecutor]":
        if self._made is None:
            from llguidance import LLExecutor, LLTokenizer  # here, as most jobs ask for no form

            size = max(self._tokenizer.get_vocab().values()) + 1
            tokenizer = LLTokenizer(
                _plain(self._tokenizer), n_vocab=size, eos_token=[id for id in self._stop_ids if id < size]
            )
            self._made = tokenizer, LLExecutor(num_threads=min(_MOST_THREADS, os.cpu_count() or 1))
        return self._made

    def _first_of(self, form: Form) -> FormMatcher:
        """Return the beginning of all answers of a form.

        A vocabulary of SentencePiece begins a text with a blank that is not in it. An answer may have it too, so that
        its first word is the token that the model was taught, unless the form itself may begin with one.
        """
        plain = self._compile(form, drops_space=False)
        if not self._begins_words or self._allows(plain.first, self._space_ids):
            return plain
        return self._compile(form, drops_space=True)

    def _compile(self, form: Form, *, drops_space: bool) -> FormMatcher:
        from llguidance import LLMatcher

        tokenizer, executor = self._parts()
        grammar = grammar_of(form, leading_space=drops_space)
        matcher = LLMatcher(tokenizer, grammar, log_level=0, limits=limits_of_forms())
        words = np.zeros((1, self.num_words), np.int32)
        if not matcher.is_error():
            executor.unsafe_compute_mask_ptr([(matcher, 0)], words.ctypes.data, words.strides[0], 1)
        if matcher.is_error() or not words.any():
            why = matcher.get_error().partition("\n")[0] or "no token can begin it"
            raise Refused(f"a form must be one that the model's vocabulary can write: {why}")
        return FormMatcher(matcher, words[0], drops_space=drops_space, token_bytes=self._token_bytes)

    def _copy(self, begin: FormMatcher) -> FormMatcher:
        assert begin.first is not None
        return FormMatcher(
            begin.matcher.deep_copy(), begin.first, drops_space=begin._drops_space, token_bytes=self._token_bytes
        )

    @property
    def _space_ids(self) -> list[int]:
        return [id for id in sorted(self._tokenizer.get_vocab().values()) if self._token_bytes.of(id)[:1] == b" "]

    @property
    def _begins_words(self) -> bool:
        """Tell whether the tokenizer drops the blank that a text begins with."""
        ids = self._space_ids
        return bool(ids) and not str(self._tokenizer.decode(ids[:1])).startswith(" ")

    @staticmethod
    def _allows(mask: Words | None, token_ids: Sequence[int]) -> bool:
        assert mask is not None
        return any(mask[id // _WORD] >> (id % _WORD) & 1 for id in token_ids)


def _plain(tokenizer: PreTrainedTokenizerFast) -> str:
    """Return the tokenizer's JSON without what only matters to batches of texts, and with a token for every id.

    llguidance takes the tokens' number for the largest id: of a vocabulary that leaves ids out it would lose the last.
    What fills these is special, and so in no text.
    """
    from tokenizers import Tokenizer

    copied = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    copied.no_padding()
    copied.no_truncation()
    ids = set(tokenizer.get_vocab().values())
    missing = sorted(set(range(max(ids))) - ids)
    if not missing:
        return str(copied.to_str())
    content = json.loads(copied.to_str())
    for id in missing:
        content["model"]["vocab"][name := f"<no token {id}>"] = id
        content["added_tokens"].append({**_SPECIAL, "id": id, "content": name})
    return json.dumps(content)
