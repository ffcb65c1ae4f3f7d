import random

import pytest

from pipeline.scoring.vqa import m4c_accuracy, m4c_normalised, vqa_accuracy

TEN = ("red", "red", "red", "blue", "blue", "green", "Red.", "a red", "pink", "grey")


@pytest.mark.parametrize(
    ("answer", "annotated", "accuracy"),
    [
        pytest.param("pink", TEN, 0.3, id="one of ten: nine leave-one-out means of 1/3 and one of 0"),
        pytest.param("blue", TEN, 0.6, id="two of ten: eight of 2/3 and two of 1/3"),
        pytest.param("red", TEN, 1.0, id="five of ten after normalising"),
        pytest.param("The RED!", TEN, 1.0, id="the answer is normalised where annotators differ"),
        pytest.param("yes", ("yes",) * 10, 1.0, id="all agree"),
        pytest.param("Yes", ("yes",) * 10, 0.0, id="all agree: nothing is normalised, not even case"),
        pytest.param(" yes\n", ("yes",) * 10, 1.0, id="all agree: the ends and line breaks are"),
        pytest.param("two", ("2",) * 9 + ("3",), 1.0, id="numbers are digits"),
        pytest.param("dont know", ("don't know",) * 9 + ("no",), 1.0, id="contractions"),
        pytest.param("1,000", ("1000",) * 9 + ("no",), 1.0, id="a comma between digits goes"),
        pytest.param("3.5", ("35",) * 9 + ("no",), 0.0, id="a point before a digit stays"),
        pytest.param("", ("yes",) * 10, 0.0, id="nothing"),
    ],
)
def test_vqa_accuracy_is_the_mean_of_leave_one_out(answer: str, annotated: tuple[str, ...], accuracy: float) -> None:
    assert vqa_accuracy(answer, annotated) == pytest.approx(accuracy)


def test_textvqa_normalises_even_where_all_annotators_agree() -> None:
    assert m4c_accuracy("Yes.", ("yes",) * 10) == 1
    assert vqa_accuracy("Yes.", ("yes",) * 10) == 0


@pytest.mark.parametrize(
    ("text", "normalised"),
    [
        pytest.param("The  Dakota\tDigital.", "dakota digital", id="case, articles, space, a full stop"),
        pytest.param("it's, no?", "it 's no", id="'s is a word"),
        pytest.param("3.50 U.S. dollars.", "3.50 us dollars", id="full stops but before digits"),
        pytest.param("a-b - c/d", "ab c d", id="a mark beside a space goes, and then all of its kind"),
        pytest.param("c/d", "c d", id="a mark inside becomes a space"),
        pytest.param("None of ten", "0 of 10", id="numbers"),
        pytest.param("couldntve somebody'd", "couldntve somebodyd", id="the original's slips"),
        pytest.param("couldn'tve yall'd've", "couldn't've y'all'd've", id="contractions of two"),
        pytest.param(" ?", "", id="nothing left"),
    ],
)
def test_text_is_normalised_as_m4c_does(text: str, normalised: str) -> None:
    assert m4c_normalised(text) == normalised


def test_the_33rd_full_stop_stays_as_in_the_original() -> None:
    assert m4c_normalised("." * 40) == "." * 8


def test_the_order_of_annotators_does_not_matter() -> None:
    draw = random.Random(0)
    for _ in range(200):
        annotated = draw.choices(["red", "Red", "a red", "blue", "2", "two"], k=10)
        shuffled = draw.sample(annotated, 10)
        answer = draw.choice(annotated)
        assert vqa_accuracy(answer, annotated) == pytest.approx(vqa_accuracy(answer, shuffled))


def test_more_annotators_of_a_mind_never_score_less() -> None:
    scores = [vqa_accuracy("red", ["red"] * agreeing + ["blue"] * (10 - agreeing)) for agreeing in range(1, 10)]
    assert scores == sorted(scores)
    assert scores[3:] == [1] * 6
