"""Stop strings: find where one ends in the tokens of an answer, as transformers' `stop_strings` does."""

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerFast

from pipeline.engine.network.token_bytes import TokenBytes


@dataclass(frozen=True, slots=True, kw_only=True)
class StopPosition:
    """The start of a stop string: `num_bytes` into the bytes of a token; a negative `token` is before the answer."""

    token: int
    num_bytes: int


class StopChecker:
    """Looks for stop strings in tokens as they come, byte by byte.

    It compares bytes, as a character may be spread over tokens and need never become whole; nothing is decoded, so
    every sequence of tokens is readable. A special token stands for its name, and the end of the prompt is searched
    too: a stop string may begin there. All of that is as transformers does it.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, stop: Sequence[str], prompt: Sequence[int]) -> None:
        self._token_bytes = TokenBytes(tokenizer)
        self._stop = [text.encode() for text in stop]
        self._bytes = bytearray()
        self._starts: list[int] = []  # of each token in `_bytes`
        self._num_before = 0  # tokens of the prompt
        self.found: StopPosition | None = None  # where the stop string begins, once one has ended
        for token_id in prompt[-max(map(len, self._stop)) :]:
            self._append(int(token_id))
        self._num_before = len(self._starts)

    def check(self, token_id: int) -> bool:
        """Append a token; tell whether a stop string ends within it. Of several the one that begins first counts."""
        self.found, old = None, len(self._bytes)
        self._append(token_id)
        starts = [self._bytes.find(stop, max(0, old - len(stop) + 1)) for stop in self._stop]
        first = min((start for start in starts if start >= 0), default=None)
        if first is None:
            return False
        token = max(i for i, start in enumerate(self._starts) if start <= first)
        self.found = StopPosition(token=token - self._num_before, num_bytes=first - self._starts[token])
        return True

    def _append(self, token_id: int) -> None:
        self._starts.append(len(self._bytes))
        self._bytes += self._token_bytes.of(token_id)
