"""VQA accuracy: how many of the annotators gave this answer, three of them being enough.

Two programs decide it. `vqa_accuracy` is VQA's own (GT-Vision-Lab/VQA, vqaEval.py); `m4c_accuracy` is that of TextVQA
(m4c_evaluator.py of MMF, which LLaVA carries along). They differ in what they do to the texts before comparing them.
"""

import re
from collections.abc import Sequence

_ENOUGH = 3  # of the other annotators


def vqa_accuracy(answer: str, annotated: Sequence[str]) -> float:
    """Score as VQA's evaluation: texts are normalised only where the annotators differ.

    Where all of them agree "Yes" is not their "yes". What LLaVA hands in has been through `m4c_normalised` before.
    """
    answer, annotated = _one_line(answer), [_one_line(text) for text in annotated]
    if len(set(annotated)) > 1:
        answer, annotated = _normalised(answer), [_normalised(text) for text in annotated]
    return _agreement(answer, annotated)


def m4c_accuracy(answer: str, annotated: Sequence[str]) -> float:
    """Score as TextVQA's evaluation: every text is normalised, always. It asserts ten annotators, this takes any
    number."""
    return _agreement(m4c_normalised(answer), [m4c_normalised(text) for text in annotated])


def m4c_normalised(text: str) -> str:
    """Normalise: lower case, no commas and question marks, 's apart, then as VQA: punctuation, articles, digits,
    contractions."""
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    return _normalised(_one_line(text))


def _agreement(answer: str, annotated: Sequence[str]) -> float:
    """Return the mean over annotators of: how many of the others gave the answer, three being all that is asked for."""
    if not annotated:
        return 0.0
    matches = sum(text == answer for text in annotated)
    shares = [min(1.0, (matches - (text == answer)) / _ENOUGH) for text in annotated]
    return sum(shares) / len(shares)


def _one_line(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def _normalised(text: str) -> str:
    words = (_DIGITS.get(word, word) for word in _without_punctuation(text).lower().split())
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def _without_punctuation(text: str) -> str:
    """Remove marks: those beside a space, or any marks where a comma parts digits, go; the others become a space.

    A full stop goes unless a digit follows, the first 32 of them: the original passes a flag where the count belongs.
    """
    parts_digits = re.search(r"\d,\d", text) is not None
    kept = text
    for mark in _MARKS:
        goes = parts_digits or f"{mark} " in text or f" {mark}" in text
        kept = kept.replace(mark, "" if goes else " ")
    return re.sub(r"\.(?!\d)", "", kept, count=32)


def _contractions() -> dict[str, str]:
    """Map a contraction written without an apostrophe, or without one of its two, to the contraction."""
    found = {word.replace("'", ""): word for word in _WITH_ONE.split()}
    for word in _WITH_TWO.split():
        first, last = word.index("'"), word.rindex("'")
        found[word[:first] + word[first + 1 :]] = word
        found[word[:last] + word[last + 1 :]] = word
    return found | _UNLIKE


_MARKS = ';/[]"{}()=+\\_-><@`,?!'
_ARTICLES = ("a", "an", "the")
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = {"none": "0"} | {word: str(digit) for digit, word in enumerate(_NUMBERS)}
_WITH_ONE = (
    "'twas ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd how'll "
    "how's isn't it'd it'll ma'am might've mightn't must've mustn't needn't not've o'clock oughtn't shan't "
    "should've shouldn't somebody'll somebody's someone'd someone'll someone's something'd something'll that's "
    "there'd there're there's they'd they'll they're they've wasn't we've weren't what'll what're what's what've "
    "when's where'd where's where've who'd who'll who's who've why'll why're why's won't would've wouldn't y'all "
    "you'd you'll you're you've"
)
_WITH_TWO = (
    "couldn't've hadn't've he'd've it'd've mightn't've she'd've shouldn't've somebody'd've someone'd've "
    "something'd've there'd've they'd've we'd've who'd've wouldn't've y'all'll you'd've"
)
_UNLIKE = {
    **dict.fromkeys(("ow's'at", "'ows'at", "'ow'sat"), "'ow's'at"),
    **dict.fromkeys(("yall'd've", "y'alld've", "y'all'dve"), "y'all'd've"),
    "somebody'd": "somebodyd",  # the original's slip, which scores answers
}
_CONTRACTIONS = _contractions()
