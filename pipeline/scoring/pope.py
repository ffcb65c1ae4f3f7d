"""POPE: whether the answer says yes or no, and what a yes is worth over many of them."""

from collections.abc import Sequence
from typing import Literal

from schemas.benchmark import Judged

Said = Literal["yes", "no"]


def said(answer: str) -> Said | None:
    """As RUCAIBox/POPE's evaluate.py and LLaVA's eval_pope.py: No, no or not in the first sentence is no, all else yes.

    So "I cannot tell" is yes. Only an empty answer is neither: there the originals say yes to what was never answered.
    """
    if not answer.strip():
        return None
    words = answer.split(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "not", "no"} & set(words) else "yes"


def outcome(said: Said | None, truth: Said) -> tuple[float, ...]:
    """One answer's share in the four cells, as `Judged.counts`: true and false yes, true and false no.

    An answer that is neither is a false no where the truth is yes, and in no cell where it is no.
    """
    cells = {("yes", "yes"): 0, ("yes", "no"): 1, ("no", "no"): 2, ("no", "yes"): 3, (None, "yes"): 3}
    cell = cells.get((said, truth))
    return tuple(float(place == cell) for place in range(4))


def yes_and_no(judged: Sequence[Judged]) -> dict[str, float]:
    """Accuracy, precision, recall and F1 of yes, and the share of yes; a ratio over nothing is 0."""
    true_yes, false_yes, true_no, false_no = (sum(one.counts[cell] for one in judged) for cell in range(4))
    precision = _ratio(true_yes, true_yes + false_yes)
    recall = _ratio(true_yes, true_yes + false_no)
    return {
        "accuracy": _ratio(true_yes + true_no, len(judged)),
        "precision": precision,
        "recall": recall,
        "f1": _ratio(2 * precision * recall, precision + recall),
        "yes share": _ratio(true_yes + false_yes, len(judged)),
    }


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
