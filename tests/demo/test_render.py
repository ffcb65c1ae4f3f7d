"""Pictures are the same from the same seed, and what is said of them is true."""

import random
from collections import Counter

import pytest

from demo.draw import HELD_OUT_BACKGROUNDS, TRAINING_BACKGROUNDS
from demo.fonts import HELD_OUT_FAMILIES, TRAINING_FAMILIES
from demo.pages import HELD_OUT_LAYOUTS, TRAINING_LAYOUTS
from demo.questions import NO_TEXT, Content, ask, describe_truth, read_truth
from demo.render import LEAST_EM, Picture, Stock, render, render_both, render_page, render_scene
from demo.scenes import PLACES, Mark, caption
from demo.words import Lexicon, is_ambiguous, is_held_out, make_line

CIRCLE = Mark(shape="circle", colour="orange", place=0)
SQUARE = Mark(shape="square", colour="red", place=5)


def pictures(stock: Stock, count: int, level: float = 1.0) -> list[Picture]:
    rng = random.Random(7)
    return [render(rng, stock, level) for _ in range(count)]


def test_the_same_seed_renders_the_same_pictures(stock: Stock) -> None:
    once, again = pictures(stock, 12), pictures(stock, 12)
    assert [p.image.tobytes() for p in once] == [p.image.tobytes() for p in again]
    assert [p.content for p in once] == [p.content for p in again]


def test_the_noted_letters_are_the_lines_in_order(stock: Stock) -> None:
    for picture in pictures(stock, 60):
        noted = "".join(letter.text for letter in picture.letters)
        assert noted == "".join(picture.content.lines).replace(" ", "")


def test_lines_are_few_and_short(stock: Stock) -> None:
    lines = [picture.content.lines for picture in pictures(stock, 80)]
    assert max(map(len, lines)) <= 4
    assert all(0 < len(line) <= 24 and line == line.strip() and "  " not in line for page in lines for line in page)


def test_letters_stay_inside_the_picture(stock: Stock) -> None:
    rng = random.Random(3)
    for picture in [render_page(rng, stock, 1.0) for _ in range(60)]:
        outside = [c for c in picture.letters if not (0 < c.x < picture.image.width and 0 < c.y < picture.image.height)]
        assert len(outside) <= 1  # a turned corner


def test_no_text_is_smaller_than_promised_unless_the_page_is_too_narrow(stock: Stock) -> None:
    rng = random.Random(5)
    sizes = [render_page(rng, stock, 1.0).smallest_em for _ in range(60)]
    assert min(sizes) >= LEAST_EM - 0.01


def test_easy_pictures_have_one_short_line(stock: Stock) -> None:
    rng = random.Random(5)
    lines = [render_page(rng, stock, 0.0).content.lines for _ in range(30)]
    assert all(len(page) == 1 and len(page[0]) <= 4 for page in lines)


def test_a_scene_has_one_shape_a_place_in_reading_order(stock: Stock) -> None:
    rng = random.Random(2)
    for picture in [render_scene(rng, stock, 1.0) for _ in range(40)]:
        places = [mark.place for mark in picture.content.marks]
        assert places == sorted(set(places))
        assert 1 <= len(places) <= 4


def test_text_beside_shapes_has_its_own_third(stock: Stock) -> None:
    rng = random.Random(2)
    for picture in [render_both(rng, stock, 1.0) for _ in range(30)]:
        thirds = {mark.place // 3 for mark in picture.content.marks}
        assert {min(2, int(3 * letter.y / picture.image.height)) for letter in picture.letters}.isdisjoint(thirds)


def test_training_and_held_out_share_no_face_word_or_layout() -> None:
    assert not TRAINING_FAMILIES & HELD_OUT_FAMILIES
    assert not set(TRAINING_LAYOUTS) & set(HELD_OUT_LAYOUTS)
    assert set(TRAINING_BACKGROUNDS) & set(HELD_OUT_BACKGROUNDS) == {"plain", "gradient"}
    assert is_held_out("Window") == is_held_out("WINDOW")


@pytest.mark.parametrize(
    ("content", "truth"),
    [
        pytest.param(Content(), "An empty picture.", id="nothing"),
        pytest.param(Content(lines=("OPEN",)), "Text in 1 line, starting with: OPEN", id="a line"),
        pytest.param(Content(lines=("Door code:", "47")), "Text in 2 lines, starting with: Door", id="lines"),
        pytest.param(Content(marks=(CIRCLE,)), "One shape: an orange circle at the top left.", id="a shape"),
        pytest.param(
            Content(marks=(CIRCLE, SQUARE), lines=("A b",)),
            "Two shapes: an orange circle at the top left, a red square at the right. Text in 1 line, starting with: A",
            id="both",
        ),
    ],
)
def test_a_description_says_shapes_then_text(content: Content, truth: str) -> None:
    assert describe_truth(content) == truth


def test_captions_name_all_nine_places() -> None:
    said = [caption([Mark(shape="ring", colour="blue", place=place)]) for place in range(9)]
    assert [text.removeprefix("One shape: a blue ring at the ").rstrip(".") for text in said] == list(PLACES)


def test_no_text_is_said_where_there_is_none() -> None:
    assert read_truth(Content(marks=(CIRCLE,))) == NO_TEXT
    assert read_truth(Content(lines=("one", "two"))) == "one\ntwo"


def test_yes_and_no_are_balanced_and_true() -> None:
    rng = random.Random(0)
    content = Content(marks=(CIRCLE, SQUARE))
    asked = [q for _ in range(400) for q in ask(rng, content, reword=True) if q.kind == "yes/no"]
    for question in asked:
        present = "orange circle" in question.prompt or "red square" in question.prompt
        assert question.truth == ("yes" if present else "no")
    assert 160 < Counter(question.truth for question in asked)["yes"] < 240


def test_colour_is_asked_only_of_a_shape_there_is_one_of() -> None:
    twins = Content(marks=(CIRCLE, Mark(shape="circle", colour="blue", place=3)))
    assert not [q for q in ask(random.Random(0), twins, reword=False) if q.kind == "colour"]


@pytest.mark.parametrize(
    ("line", "ambiguous"),
    [("so", True), ("COW", True), ("cow's", True), ("SOX 9", False), ("Sold", False), ("42", False), ("...", False)],
)
def test_a_line_is_ambiguous_when_its_capitals_cannot_be_told(line: str, ambiguous: bool) -> None:
    assert is_ambiguous(line) == ambiguous


def test_lines_of_every_kind_fit_their_limit() -> None:
    rng = random.Random(1)
    lexicon = Lexicon(words=("bread", "night", "window"))
    assert all(0 < len(make_line(rng, lexicon, limit)) <= limit for limit in range(1, 25) for _ in range(40))
