"""What fewer bits cost the demo model's answers, on a few of the held-out items."""

import pytest

from demo.heldout import Item, read_items
from demo.score import MODEL, Scores, score

MOST_LOST = 0.07  # share of the 15 answers that are not readings, captions nearly all: one of them
MOST_MISREAD = 0.015  # of the characters, beyond those that are misread in full precision


@pytest.fixture(scope="module")
def few() -> list[Item]:
    return read_items()[::10]


@pytest.fixture(scope="module")
def whole(few: list[Item]) -> Scores:
    return score(MODEL, few)[0]


@pytest.mark.soak
@pytest.mark.timeout(900)
@pytest.mark.parametrize("quantize", ["fp8", "8bit", "4bit"])
def test_fewer_bits_cost_few_answers(few: list[Item], whole: Scores, quantize) -> None:
    scores = score(MODEL, few, quantize)[0]
    assert scores.questions_exact >= whole.questions_exact - MOST_LOST
    assert scores.character_error_rate <= whole.character_error_rate + MOST_MISREAD
    assert scores.stopped >= 0.95
