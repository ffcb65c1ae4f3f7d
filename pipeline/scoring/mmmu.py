"""MMMU's open questions: what an answer could be meant to say, and whether the truth is among it."""

import re
from collections.abc import Iterable, Sequence

_BEFORE_ANSWERS = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
_NUMBERS = (
    r"-?\b\d{1,3}(?:,\d{3})+\b",  # with commas
    r"-?\d+(?:\.\d+)?[eE][+-]?\d+",
    r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])",
)


def open_match(answer: str, accepted: Sequence[str]) -> bool:
    """Compare as MMMU's parse_open_response and eval_open: an equal number, or a text that has the truth in it.

    The original lowers the text before it looks for sentences, which begin with a capital: only lines part it.
    """
    truths = _values(accepted)
    for said in _values(_candidates(answer)):
        if said in truths if isinstance(said, float) else any(isinstance(t, str) and t in said for t in truths):
            return True
    return False


def _candidates(answer: str) -> list[str]:
    """Return each line's shortest text after a word that comes before answers, or the whole answer, and the numbers
    there."""
    lines = answer.strip().strip(".").lower().split("\n")
    tails = [
        _shortest_tail(line, (*_BEFORE_ANSWERS, "=") if last else _BEFORE_ANSWERS)
        for last, line in ((number == len(lines) - 1, line) for number, line in enumerate(lines))
    ]
    found = [tail for tail in tails if tail and tail not in tuple(":,.!?;'")] or ["\n".join(lines)]
    return found + [number for text in found for shape in _NUMBERS for number in re.findall(shape, text)]


def _shortest_tail(line: str, words: Iterable[str]) -> str:
    shortest = ""
    for word in words:
        if word in line:
            tail = line.split(word)[-1].strip()
            shortest = tail if not shortest or len(tail) < len(shortest) else shortest
    return shortest


def _values(texts: Iterable[str]) -> list[str | float]:
    """Return numbers to two decimals; texts in lower case, a single letter with a space on either side of it."""
    found: list[str | float] = []
    for text in (text.strip() for text in texts):
        try:
            found.append(round(float(text.replace(",", "")), 2))
        except ValueError:
            lower = text.lower()
            found += [f" {lower}", f"{lower} "] if len(lower) == 1 else [lower]
    return found
