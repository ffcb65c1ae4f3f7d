"""Summaries: the numbers of many judged answers, over all of them and over each split."""

from collections.abc import Sequence

from schemas.benchmark import Judged, Numbers, Summary


def mean_score(name: str, beside: str | None = None) -> Summary:
    """Return a summary: the mean score as `name`, then that of every split as `name split`.

    `beside` names another rule's score, which is the first of the counts.
    """

    def add(group: Sequence[Judged]) -> list[float]:
        scores = [sum(one.score for one in group)]
        return [*scores, sum(one.counts[0] for one in group)] if beside else scores

    def means(rows: Numbers, scores: Numbers, *others: Numbers) -> dict[str, Numbers]:
        found = {name: scores / rows}
        return found | {beside: others[0] / rows} if beside else found

    return Summary(add=add, numbers=means, split_numbers=means)


def mean(values: Sequence[float]) -> float:
    """Return the mean; there is none of nothing."""
    if not values:
        raise ValueError("a summary needs at least one judged answer, got none")
    return sum(values) / len(values)
