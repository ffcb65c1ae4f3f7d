"""ANLS: average normalised Levenshtein similarity, the best over the accepted answers, nothing below a half.

There is no official program for DocVQA; the two variants here are what published numbers were made with.
"""

from collections.abc import Sequence

_HALF = 0.5


def anls(answer: str, accepted: Sequence[str]) -> float:
    """Score as equation 1 of the ST-VQA paper (arXiv:1907.00490) and pix2struct: a distance of exactly one half scores
    0.

    Case and runs of white space are folded first.
    """
    return max(_strict(_folded(answer), _folded(text)) for text in accepted)


def anls_lenient(answer: str, accepted: Sequence[str]) -> float:
    """Score as Qwen-VL, lmms-eval and VLMEvalKit: a distance of exactly one half scores 0.5.

    The distance is of folded texts, but the length it is divided by that of the texts as they came, spaces included.
    """
    shares = []
    for text in accepted:
        length = max(len(text.upper()), len(answer.upper()))
        shares.append(_distance(_folded(text), _folded(answer)) / length if length else 0.0)
    similarity = 1 - min(shares)
    return similarity if similarity >= _HALF else 0.0


def _strict(answer: str, accepted: str) -> float:
    length = max(len(answer), len(accepted))
    share = _distance(answer, accepted) / length if length else 0.0
    return 1 - share if share < _HALF else 0.0


def _folded(text: str) -> str:
    return " ".join(text.lower().split())


def _distance(one: str, other: str) -> int:
    from rapidfuzz.distance import Levenshtein  # an extra, see packages.py

    return Levenshtein.distance(one, other)
