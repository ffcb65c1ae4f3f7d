from dataclasses import replace

import pytest

from pipeline.scoring.summary import mean, mean_score
from schemas.benchmark import Judged


def judged(score: float, split: str | None = None) -> Judged:
    return Judged(id=str(score), score=score, parsed="x", split=split)


def test_the_headline_comes_first_and_then_every_split_in_order() -> None:
    found = mean_score("accuracy")([judged(1, "b"), judged(0, "a"), judged(0, "b"), judged(1)])
    assert list(found.items()) == [("accuracy", 0.5), ("accuracy a", 0), ("accuracy b", 0.5)]


def test_another_rules_score_stands_beside_the_first() -> None:
    both = [replace(judged(0, "a"), counts=(1.0,)), replace(judged(1), counts=(1.0,))]
    assert mean_score("anls", beside="lenient")(both) == {"anls": 0.5, "lenient": 1, "anls a": 0, "lenient a": 1}


def test_nothing_has_no_mean() -> None:
    with pytest.raises(ValueError, match="a summary needs at least one judged answer, got none"):
        mean([])
