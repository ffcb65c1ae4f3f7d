"""Summaries: the numbers of many judged answers, over all of them and over each split."""

from collections import defaultdict
from collections.abc import Callable, Sequence

from schemas.benchmark import Judged


def mean_score(name: str) -> Callable[[Sequence[Judged]], dict[str, float]]:
    """A summary: the mean score as `name`, then that of every split as `name split`."""

    def summarise(judged: Sequence[Judged]) -> dict[str, float]:
        return by_split(judged, lambda some: {name: mean([one.score for one in some])})

    return summarise


def by_split(judged: Sequence[Judged], summarise: Callable[[Sequence[Judged]], dict[str, float]]) -> dict[str, float]:
    """What `summarise` says of all answers, then of those of every split, which its names end in."""
    splits: dict[str, list[Judged]] = defaultdict(list)
    for one in judged:
        if one.split is not None:
            splits[one.split].append(one)
    found = dict(summarise(judged))
    for split, some in sorted(splits.items()):
        found |= {f"{name} {split}": value for name, value in summarise(some).items()}
    return found


def mean(values: Sequence[float]) -> float:
    """The mean; there is none of nothing."""
    if not values:
        raise ValueError("a summary needs at least one judged answer, got none")
    return sum(values) / len(values)
