"""What a training picture is asked."""

import random
from collections import Counter

import pytest

from demo.examples import SHAPE_KINDS, choose_questions
from demo.questions import Content, Question
from demo.scenes import Mark

FOUR = tuple(
    Mark(shape=shape, colour=colour, place=place)
    for place, (shape, colour) in enumerate([("circle", "red"), ("square", "red"), ("star", "blue"), ("ring", "white")])
)


def asked(content: Content, pictures: int = 200) -> list[list[Question]]:
    rng = random.Random(3)
    return [choose_questions(rng, content) for _ in range(pictures)]


@pytest.mark.parametrize(
    "content", [Content(marks=FOUR), Content(lines=("open", "9 to 5")), Content(), Content(marks=FOUR, lines=("open",))]
)
def test_no_picture_is_asked_the_same_question_twice(content: Content) -> None:
    assert all(len(set(questions)) == len(questions) for questions in asked(content))


def test_a_scene_is_asked_about_several_of_its_shapes() -> None:
    kinds = Counter(question.kind for questions in asked(Content(marks=FOUR)) for question in questions)
    assert all(kinds[kind] > 300 for kind in SHAPE_KINDS)
    assert kinds["caption"] == kinds["no text"] == 200
    assert 60 < kinds["count"] < 140


def test_the_description_comes_before_the_short_questions_or_behind_them() -> None:
    first = [questions[0].kind in {"caption", "no text"} for questions in asked(Content(marks=FOUR))]
    assert 90 < sum(first) < 150


def test_pages_are_always_asked_how_many_lines_they_have() -> None:
    assert all("lines" in {q.kind for q in questions} for questions in asked(Content(lines=("open",))))
