"""Intervals: the same on every call, as wide as theory says, and paired question by question."""

from collections.abc import Sequence

import numpy as np
import pytest

from pipeline.scoring.pope import YES_AND_NO
from pipeline.scoring.summary import mean_score
from pipeline.sweep.bootstrap import Draws, score_cells
from schemas.benchmark import Judged
from schemas.sweep import CellName

DRAWS = Draws(resamples=2000, seed=7)
A, B = (CellName(model="m", benchmark="b", prompt=prompt, settings="s") for prompt in ("a", "b"))


def judged(scores: Sequence[float], **fields: object) -> list[Judged]:
    return [Judged(id=f"{i:04}", score=score, parsed="x", **fields) for i, score in enumerate(scores)]


def coins(count: int, share: float, seed: int = 0) -> list[float]:
    return (np.random.default_rng(seed).random(count) < share).astype(float).tolist()


def test_an_interval_is_as_wide_as_that_of_a_binomial() -> None:
    scores = coins(400, 0.3)
    (score,) = score_cells({A: judged(scores)}, mean_score("right"), {}, DRAWS)[A]
    share = np.mean(scores)
    half = 1.96 * np.sqrt(share * (1 - share) / 400)
    assert score.score.value == share
    assert score.score.low == pytest.approx(share - half, abs=0.008)
    assert score.score.high == pytest.approx(share + half, abs=0.008)


def test_the_interval_holds_the_truth_about_95_times_in_a_hundred() -> None:
    hits = 0
    for seed in range(100):
        (score,) = score_cells({A: judged(coins(100, 0.5, seed))}, mean_score("r"), {}, Draws(resamples=200, seed=1))[A]
        hits += score.score.low <= 0.5 <= score.score.high
    assert 88 <= hits <= 99


def test_the_same_answers_have_the_same_intervals_whatever_else_is_scored() -> None:
    some, others = judged(np.random.default_rng(3).random(50).tolist()), judged(coins(50, 0.9, 1))
    alone = score_cells({A: some}, mean_score("right"), {}, DRAWS)[A]
    assert score_cells({B: others, A: some}, mean_score("right"), {}, DRAWS)[A] == alone
    assert score_cells({A: some}, mean_score("right"), {}, Draws(resamples=2000, seed=8))[A] != alone


def test_a_difference_is_paired_and_so_surer_than_either_score() -> None:
    scores = coins(200, 0.5)
    better = [1.0 if i % 20 == 0 else score for i, score in enumerate(scores)]
    found = score_cells({A: judged(scores), B: judged(better)}, mean_score("right"), {A: A, B: A}, DRAWS)
    (own,), (other,) = found[A], found[B]
    assert own.difference is None
    assert other.difference is not None
    assert other.difference.value == pytest.approx(np.mean(better) - np.mean(scores))
    assert 0 < other.difference.low < other.difference.high < other.score.high - other.score.low


def test_questions_of_one_cluster_are_drawn_together() -> None:
    scores = [float(i < 50) for i in range(100)]
    rows = [Judged(id=f"{i:04}", score=score, parsed="x", cluster=str(i // 10)) for i, score in enumerate(scores)]
    alone, clustered = (
        score_cells({A: some}, mean_score("right"), {}, DRAWS)[A][0].score for some in (judged(scores), rows)
    )
    assert clustered.high - clustered.low > 2 * (alone.high - alone.low)


def test_a_metric_of_the_whole_is_computed_anew_for_every_draw() -> None:
    cells = [(1.0, 0, 0, 0), (0.0, 0, 1.0, 0), (0.0, 0, 0, 1.0), (1.0, 0, 0, 0), (0.0, 1.0, 0, 0)] * 20
    rows = [Judged(id=f"{i:04}", score=0.0, parsed="yes", counts=counts) for i, counts in enumerate(cells)]
    f1 = next(score for score in score_cells({A: rows}, YES_AND_NO, {}, DRAWS)[A] if score.metric == "f1")
    assert f1.score.value == pytest.approx(2 / 3)
    assert 0.5 < f1.score.low < f1.score.value < f1.score.high < 0.8


def test_a_split_that_a_draw_leaves_out_does_not_spoil_its_interval() -> None:
    rows = judged([1.0] * 6, split="common") + [Judged(id="9", score=0.5, parsed="x", split="rare")]
    rare = score_cells({A: rows}, mean_score("right"), {}, DRAWS)[A][2]
    assert (rare.metric, rare.score.low, rare.score.high) == ("right rare", 0.5, 0.5)


def test_cells_that_were_asked_other_questions_are_not_compared() -> None:
    with pytest.raises(ValueError, match="the same questions"):
        score_cells({A: judged([1.0]), B: judged([1.0, 0.0])}, mean_score("right"), {}, DRAWS)
