"""Runaway repetition: find answers that repeat one cycle until their room is full, and how much of them to keep."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

SPAN = 384  # tokens at the end of a full room that must be one cycle over and over
EARLY = 1536  # tokens that must be before the room is full, or half of it if that is more
ROUNDS = 4  # that are seen at least
LOOK_EVERY = 64  # tokens
_CERTAIN = math.log(0.5)  # of filling the room


@dataclass(frozen=True, slots=True, kw_only=True)
class Runaway:
    """Repeats at the end of an answer: from `start` on, its tokens are one cycle of this length, over and over."""

    start: int
    cycle: int

    def whole_rounds(self, num_tokens: int) -> int:
        """Return how many of so many tokens are left without the last, incomplete round."""
        return num_tokens - (num_tokens - self.start) % self.cycle


def find_runaway(token_ids: Sequence[int], logprobs: Sequence[float] = (), room: float = math.inf) -> Runaway | None:
    """Find the repeats of an answer that has `room` tokens at most; None where it may yet come to an end of its own.

    Print repeats too, so a cycle counts in two cases only. The room is full, and its last SPAN tokens are one cycle. Or
    half the room is, EARLY tokens at least, and the model is certain: were every token to come as likely as the last
    ones were, they would more likely than not fill the room. What counts up, or changes a word a round, is no cycle.
    """
    num = len(token_ids)
    if num >= room:
        return find_cycle(token_ids, SPAN)
    span = max(EARLY, room // 2)  # an unlimited room is never filled
    if num < span or num % LOOK_EVERY or sum(logprobs[-SPAN:]) / SPAN * (room - num) < _CERTAIN:
        return None
    return find_cycle(token_ids, int(span))


def find_cycle(token_ids: Sequence[int], span: int) -> Runaway | None:
    """Find the shortest cycle that fills the last `span` tokens at least ROUNDS times, and where it began."""
    if len(token_ids) < span:
        return None
    tail = list(token_ids[-span:])
    cycle = next((length for length in range(1, span // ROUNDS + 1) if _is_cycle(tail, length)), None)
    if cycle is None:
        return None
    start = len(token_ids) - span
    while start > 0 and token_ids[start - 1] == token_ids[start - 1 + cycle]:
        start -= 1
    return Runaway(start=start, cycle=cycle)


def _is_cycle(tokens: list[int], length: int) -> bool:
    """Compare the last tokens first: that rules out most lengths without comparing whole lists."""
    return tokens[-4:] == tokens[-4 - length : -length] and tokens[length:] == tokens[:-length]
