"""Exact match: an answer that is the accepted one after as little folding as each evaluator does."""

import string
from collections.abc import Sequence

_PUNCTUATION = str.maketrans("", "", string.punctuation)


def exact_match(answer: str, accepted: Sequence[str]) -> bool:
    """Compare the texts as they are, but for white space at their ends."""
    return answer.strip() in [text.strip() for text in accepted]


def gqa_match(answer: str, accepted: Sequence[str]) -> bool:
    """Compare as LLaVA hands answers to GQA's eval.py: full stops at the end off, lower case; the truth as it is."""
    return answer.rstrip(".").lower() in accepted


def folded_match(answer: str, accepted: Sequence[str]) -> bool:
    """Compare as lmms-eval's exact_match with ignore_case and ignore_punctuation: ASCII punctuation goes, spaces
    stay."""
    return _folded(answer) in [_folded(text) for text in accepted]


def _folded(text: str) -> str:
    return text.strip().lower().translate(_PUNCTUATION)
