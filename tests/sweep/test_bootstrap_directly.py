"""Intervals by sums are those of going through the answers of every draw again, for every benchmark's numbers."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest

from jobs.benchmarks import BENCHMARKS
from pipeline.scoring.pope import outcome
from pipeline.sweep.bootstrap import Draws, score_cells
from schemas.benchmark import Benchmark, Judged
from schemas.sweep import CellName
from tests.sweep.direct import DIRECT

A, B = (CellName(model="m", benchmark="b", prompt=prompt, settings="s") for prompt in ("a", "b"))
DRAWS = Draws(resamples=60, seed=5)
ROWS = 40


def counts_of(name: str, random: np.random.Generator) -> tuple[float, ...]:
    if name == "pope":
        found, truth = random.choice(["yes", "no", ""]), random.choice(["yes", "no"])
        return outcome(found or None, truth)
    if name == "own":
        return tuple(map(float, random.integers(0, 30, 4))) if random.random() < 0.1 else ()
    if name == "coco":
        said = [max(0, int(random.integers(0, 12)) - length) for length in range(4)]
        right = [int(random.integers(0, count + 1)) for count in said]
        return tuple(map(float, [*said, *right, said[0], random.integers(1, 12), random.random()]))
    return (float(random.integers(0, 2)),)


def judged_at_random(name: str, seed: int) -> list[Judged]:
    """Answers with and without a split, one of which is rare; clusters of one to four where the benchmark has them."""
    random, same = np.random.default_rng(seed), np.random.default_rng(0)
    rows = []
    for row in range(ROWS):
        cluster = f"c{same.integers(0, ROWS // 3)}" if name == "mmbench" else None
        split = "rare" if row == 7 else str(same.choice(["x", "y"])) if row % 5 else None
        split = "xy"[int((cluster or "c0")[1:]) % 2] if name == "mmbench" else split
        score = float(random.integers(0, 2)) if name in ("mmbench", "ocrbench") else float(random.random())
        counts = counts_of(name, random)
        rows.append(Judged(id=f"{row:03}", score=score, parsed="x", split=split, cluster=cluster, counts=counts))
    return rows


def drawn_rows(judged: Sequence[Judged], draws: Draws) -> Iterator[list[int]]:
    clusters: dict[str, list[int]] = defaultdict(list)
    for row, one in enumerate(judged):
        clusters[one.cluster or one.id].append(row)
    members = list(clusters.values())
    generator = np.random.default_rng(draws.seed)
    for _ in range(draws.resamples):
        yield [row for group in generator.integers(0, len(members), len(members)) for row in members[group]]


def directly(
    judged: Mapping[CellName, Sequence[Judged]], summarise: Callable[[Sequence[Judged]], dict[str, float]]
) -> dict[CellName, dict[str, list[float]]]:
    found: dict[CellName, dict[str, list[float]]] = {name: defaultdict(list) for name in judged}
    for rows in drawn_rows(next(iter(judged.values())), DRAWS):
        for name, some in judged.items():
            numbers = summarise([some[row] for row in rows])
            for metric in summarise(some):
                found[name][metric].append(numbers.get(metric, np.nan))
    return found


@pytest.mark.parametrize("benchmark", BENCHMARKS, ids=lambda one: one.name)
@pytest.mark.parametrize("weights_at_once", [1, 700, 2**22])
def test_intervals_by_sums_are_those_of_every_draw_anew(benchmark: Benchmark, weights_at_once: int) -> None:
    judged = {name: judged_at_random(benchmark.name, seed) for name, seed in ((A, 1), (B, 2))}
    summarise = DIRECT[benchmark.name]
    drawn, draws = directly(judged, summarise), replace(DRAWS, weights_at_once=weights_at_once)
    for name, scores in score_cells(judged, benchmark.summarise, {A: A, B: A}, draws).items():
        values = summarise(judged[name])
        assert {score.metric: score.score.value for score in scores} == pytest.approx(values)
        for score in scores:
            own = np.array(drawn[name][score.metric])
            tails = np.nanpercentile(own, (2.5, 97.5))
            assert (score.score.low, score.score.high) == pytest.approx(tails)
            if score.difference is not None:
                other = np.array(drawn[A][score.metric])
                tails = np.nanpercentile(own - other, (2.5, 97.5))
                assert (score.difference.low, score.difference.high) == pytest.approx(tails, abs=1e-12)


def test_every_draw_by_itself_has_the_number_of_its_answers() -> None:
    (benchmark,) = (one for one in BENCHMARKS if one.name == "pope")
    judged = judged_at_random("pope", 3)
    summarise = benchmark.summarise
    groups = [[place] for place in range(ROWS)]
    for rows in drawn_rows(judged, DRAWS):
        weights = np.bincount(rows, minlength=ROWS).astype(float)[:, None]
        found = {n: float(v[0]) for n, v in summarise.weigh(summarise.sums(judged, groups), weights).items()}
        there = {name: value for name, value in found.items() if not np.isnan(value)}
        assert there == pytest.approx(DIRECT["pope"]([judged[row] for row in rows]))
