"""Bootstrap: how sure a score is, and the difference of two on the same questions, from questions drawn again.

Questions are drawn, not answers: all cells of a benchmark see the same draws, so that the difference of two is paired.
What a benchmark says belongs together (its clusters) is drawn together. A draw is how often it has each group: a
product with what the groups add to a metric, however the metric goes on from there.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from schemas.benchmark import Judged, Numbers, Summary, groups_of
from schemas.sweep import CellName

_TAILS = (2.5, 97.5)  # percent


@dataclass(frozen=True, slots=True, kw_only=True)
class Draws:
    """Number of draws, and their seed."""

    resamples: int
    seed: int
    weights_at_once: int = 2**22  # of all draws and groups, 8 bytes each


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A number, and the 95 % interval of the same number over the draws (percentiles)."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """One metric of one cell; `difference` is that to its baseline on the same questions."""

    metric: str
    score: Interval
    difference: Interval | None


def score_cells(
    judged: Mapping[CellName, Sequence[Judged]],
    summarise: Summary,
    baselines: Mapping[CellName, CellName],
    draws: Draws,
) -> dict[CellName, list[Score]]:
    """Return the metrics of cells that were asked the same questions, each sorted by id, the headline first."""
    questions = {tuple(one.id for one in some) for some in judged.values()}
    if len(questions) > 1:
        raise ValueError("cells of one benchmark must have been asked the same questions, these were not")
    groups = groups_of(next(iter(judged.values())))
    sums = {name: summarise.sums(some, groups) for name, some in judged.items()}
    values = {name: summarise.total(own) for name, own in sums.items()}
    parts: dict[CellName, dict[str, list[Numbers]]] = {name: defaultdict(list) for name in judged}
    for weights in _draw(len(groups), draws):
        for name, own in sums.items():
            for metric, numbers in summarise.weigh(own, weights).items():
                parts[name][metric].append(numbers)
    drawn = {name: {metric: np.concatenate(some) for metric, some in own.items()} for name, own in parts.items()}
    return {name: _scores(name, values, drawn, baselines.get(name)) for name in judged}


def _draw(num_groups: int, draws: Draws) -> Iterator[Numbers]:
    """Yield how often each group is drawn, (groups, some draws): as many with repeats as there are."""
    generator = np.random.default_rng(draws.seed)
    at_once = max(1, draws.weights_at_once // num_groups)
    for start in range(0, draws.resamples, at_once):
        weights = np.empty((min(at_once, draws.resamples - start), num_groups))
        for draw in weights:
            draw[:] = np.bincount(generator.integers(0, num_groups, num_groups), minlength=num_groups)
        yield weights.T


def _scores(
    name: CellName,
    values: Mapping[CellName, dict[str, float]],
    drawn: Mapping[CellName, Mapping[str, Numbers]],
    baseline: CellName | None,
) -> list[Score]:
    scores = []
    for metric, value in values[name].items():
        own = drawn[name][metric]
        difference = None
        if baseline is not None and baseline != name and metric in values.get(baseline, {}):
            difference = _interval(value - values[baseline][metric], own - drawn[baseline][metric])
        scores.append(Score(metric=metric, score=_interval(value, own), difference=difference))
    return scores


def _interval(value: float, drawn: Numbers) -> Interval:
    low, high = np.nanpercentile(drawn, _TAILS).tolist()
    return Interval(value=value, low=low, high=high)
