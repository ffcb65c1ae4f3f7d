"""POPE: whether the answer says yes or no, and what a yes is worth over many of them."""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from schemas.benchmark import Judged, Numbers, Summary

Said = Literal["yes", "no"]


def said(answer: str) -> Said | None:
    """Read the answer as RUCAIBox/POPE's evaluate.py and LLaVA's eval_pope.py: No, no or not in the first sentence is
    no, all else yes.

    So "I cannot tell" is yes. Only an empty answer is neither: there the originals say yes to what was never answered.
    """
    if not answer.strip():
        return None
    words = answer.split(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "not", "no"} & set(words) else "yes"


def outcome(found: Said | None, truth: Said) -> tuple[float, ...]:
    """Return one answer's share in the four cells, as `Judged.counts`: true and false yes, true and false no.

    An answer that is neither is a false no where the truth is yes, and in no cell where it is no.
    """
    cells = {("yes", "yes"): 0, ("yes", "no"): 1, ("no", "no"): 2, ("no", "yes"): 3, (None, "yes"): 3}
    cell = cells.get((found, truth))
    return tuple(float(index == cell) for index in range(4))


def _cells(group: Sequence[Judged]) -> list[float]:
    return [sum(one.counts[cell] for one in group) for cell in range(4)]


def _yes_and_no(
    rows: Numbers, true_yes: Numbers, false_yes: Numbers, true_no: Numbers, false_no: Numbers
) -> dict[str, Numbers]:
    """Return accuracy, precision, recall and F1 of yes, and the share of yes; a ratio over nothing is 0."""
    precision = _ratio(true_yes, true_yes + false_yes)
    recall = _ratio(true_yes, true_yes + false_no)
    return {
        "accuracy": _ratio(true_yes + true_no, rows),
        "precision": precision,
        "recall": recall,
        "f1": _ratio(2 * precision * recall, precision + recall),
        "yes share": _ratio(true_yes + false_yes, rows),
    }


YES_AND_NO = Summary(add=_cells, numbers=_yes_and_no, split_numbers=_yes_and_no)


def _ratio(part: Numbers, whole: Numbers) -> Numbers:
    return np.divide(part, whole, out=np.zeros_like(part), where=whole != 0)
