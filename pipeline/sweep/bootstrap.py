"""Bootstrap: how sure a score is, and the difference of two on the same questions, from questions drawn again.

Questions are drawn, not answers: all cells of a benchmark see the same draws, so that the difference of two is paired.
What a benchmark says belongs together (its clusters) is drawn together.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from schemas.benchmark import Judged
from schemas.sweep import CellName

Summary = Callable[[Sequence[Judged]], dict[str, float]]
_TAILS = (2.5, 97.5)  # percent


@dataclass(frozen=True, slots=True, kw_only=True)
class Draws:
    """How often is drawn, and from which seed."""

    resamples: int
    seed: int


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
    """The metrics of cells that were asked the same questions, each sorted by id, the headline first."""
    questions = {tuple(one.id for one in some) for some in judged.values()}
    if len(questions) > 1:
        raise ValueError("cells of one benchmark must have been asked the same questions, these were not")
    values = {name: summarise(some) for name, some in judged.items()}
    drawn: dict[CellName, dict[str, list[float]]] = {name: defaultdict(list) for name in judged}
    for rows in _draw(next(iter(judged.values())), draws):
        for name, some in judged.items():
            found = summarise([some[row] for row in rows])
            for metric in values[name]:
                drawn[name][metric].append(found.get(metric, np.nan))  # no row of a small split may be drawn
    return {name: _scores(name, values, drawn, baselines.get(name)) for name in judged}


def _draw(judged: Sequence[Judged], draws: Draws) -> Iterator[list[int]]:
    """Rows, with repeats: as many clusters as there are."""
    clusters: dict[str, list[int]] = defaultdict(list)
    for row, one in enumerate(judged):
        clusters[f"cluster {one.cluster}" if one.cluster is not None else f"id {one.id}"].append(row)
    members = list(clusters.values())
    generator = np.random.default_rng(draws.seed)
    for _ in range(draws.resamples):
        chosen = generator.integers(0, len(members), len(members))
        yield [row for cluster in chosen.tolist() for row in members[cluster]]


def _scores(
    name: CellName,
    values: Mapping[CellName, dict[str, float]],
    drawn: Mapping[CellName, Mapping[str, list[float]]],
    baseline: CellName | None,
) -> list[Score]:
    scores = []
    for metric, value in values[name].items():
        own = np.array(drawn[name][metric])
        difference = None
        if baseline is not None and baseline != name and metric in values.get(baseline, {}):
            difference = _interval(value - values[baseline][metric], own - np.array(drawn[baseline][metric]))
        scores.append(Score(metric=metric, score=_interval(value, own), difference=difference))
    return scores


def _interval(value: float, drawn: npt.NDArray[np.float64]) -> Interval:
    low, high = np.nanpercentile(drawn, _TAILS).tolist()
    return Interval(value=value, low=low, high=high)
