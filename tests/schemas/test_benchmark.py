import pytest

from schemas.benchmark import Question, Reference


def test_a_reference_has_an_answer() -> None:
    with pytest.raises(ValueError, match="answers must have at least one answer, got none"):
        Reference(answers=())


def test_a_judged_answer_keeps_the_place_of_its_question() -> None:
    question = Question(
        id="7", prompt="Why?", images=(), reference=Reference(answers=("so",)), split="hard", cluster="3"
    )
    judged = question.judged(0.5, "so", (1.0, 2.0))
    assert (judged.id, judged.split, judged.cluster) == ("7", "hard", "3")
    assert (judged.score, judged.parsed, judged.counts) == (0.5, "so", (1.0, 2.0))
