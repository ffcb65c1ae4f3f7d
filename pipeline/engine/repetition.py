"""Runaway repetition: when an answer goes round in a circle, and where the circle begins."""

from collections.abc import Sequence

SPAN = 384  # tokens that must be one cycle over and over
LONGEST_CYCLE = 96  # tokens, so that a cycle is seen four times at least
LOOK_EVERY = 16  # tokens


def find_runaway(token_ids: Sequence[int]) -> int | None:
    """How many tokens stand before the repeats, the cycle's first round among them; None where nothing runs away.

    An answer runs away when its last SPAN tokens are a cycle of at most LONGEST_CYCLE tokens, repeated without any
    difference; it is looked at whenever its length is a multiple of LOOK_EVERY. Much that is printed repeats for less:
    leaders of dots, columns of zeros, empty lines of a form. What counts up or changes a word a round is not found.
    """
    if len(token_ids) < SPAN or len(token_ids) % LOOK_EVERY:
        return None
    tail = list(token_ids[-SPAN:])
    cycle = next((length for length in range(1, LONGEST_CYCLE + 1) if _is_cycle(tail, length)), None)
    if cycle is None:
        return None
    start = len(token_ids) - SPAN
    while start > 0 and token_ids[start - 1] == token_ids[start - 1 + cycle]:
        start -= 1
    return start + cycle


def _is_cycle(tokens: list[int], length: int) -> bool:
    return tokens[-1] == tokens[-1 - length] and tokens[length:] == tokens[:-length]
