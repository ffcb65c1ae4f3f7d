"""OCRBench: whether an accepted answer is somewhere in what was said."""

from collections.abc import Sequence

# Full-width ASCII and the ideographic space, as they are on East Asian keyboards.
_HALF_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | {0x3000: 0x20}


def contains_answer(answer: str, accepted: Sequence[str]) -> bool:
    """Look as MultimodalOCR's OCRBench/example.py: lower case, line breaks are spaces, then a part of the answer will
    do."""
    said = _folded(answer)
    return any(_folded(text) in said for text in accepted)


def contains_answer_of_any_width(answer: str, accepted: Sequence[str]) -> bool:
    """Look as lmms-eval since 2026: full-width ASCII and the ideographic space count as the plain ones."""
    return contains_answer(answer.translate(_HALF_WIDTH), [text.translate(_HALF_WIDTH) for text in accepted])


def contains_formula(answer: str, accepted: Sequence[str]) -> bool:
    """Return the rule for HME100k's handwritten formulas: case counts, white space does not."""
    said = _unspaced(answer)
    return any(_unspaced(text) in said for text in accepted)


def _folded(text: str) -> str:
    return text.lower().strip().replace("\n", " ")


def _unspaced(text: str) -> str:
    return text.strip().replace("\n", " ").replace(" ", "")
