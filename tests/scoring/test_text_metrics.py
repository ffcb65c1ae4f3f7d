import random

import pytest

from pipeline.scoring.anls import anls, anls_lenient
from pipeline.scoring.exact import exact_match, folded_match, gqa_match
from pipeline.scoring.ocrbench import contains_answer, contains_answer_of_any_width, contains_formula
from pipeline.scoring.relaxed import relaxed_match


@pytest.mark.parametrize(
    ("answer", "accepted", "strict", "lenient"),
    [
        pytest.param("Coffee", ("coffee",), 1, 1, id="case"),
        pytest.param("coffe", ("coffee",), 5 / 6, 5 / 6, id="a letter"),
        pytest.param("ab", ("abcd",), 0, 0.5, id="a distance of exactly one half"),
        pytest.param("abc", ("abcde",), 3 / 5, 3 / 5, id="just below one half"),
        pytest.param("a", ("abcd",), 0, 0, id="above one half"),
        pytest.param("tea", ("coffee", "tea", "teas"), 1, 1, id="the best of several"),
        pytest.param("two  words", ("two words",), 1, 1, id="runs of space"),
        pytest.param("ab  d", ("ab c",), 3 / 4, 4 / 5, id="lenient divides by the length as it came"),
        pytest.param("", ("",), 1, 1, id="nothing of nothing"),
        pytest.param("", ("a",), 0, 0, id="nothing"),
    ],
)
def test_anls_has_two_variants(answer: str, accepted: tuple[str, ...], strict: float, lenient: float) -> None:
    assert anls(answer, accepted) == pytest.approx(strict)
    assert anls_lenient(answer, accepted) == pytest.approx(lenient)


def test_anls_is_symmetric_and_never_between_0_and_one_half() -> None:
    draw = random.Random(0)
    for _ in range(500):
        one, other = ("".join(draw.choices("abc", k=draw.randint(1, 8))) for _ in range(2))
        for metric in (anls, anls_lenient):
            assert metric(one, (other,)) == metric(other, (one,))
            assert metric(one, (other,)) == 0 or 0.5 <= metric(one, (other,)) <= 1


@pytest.mark.parametrize(
    ("answer", "truth", "right"),
    [
        pytest.param("105", "100", True, id="five per cent more"),
        pytest.param("95", "100", True, id="five per cent less"),
        pytest.param("105.1", "100", False, id="more than that"),
        pytest.param("12%", "12", False, id="per cent is a hundredth"),
        pytest.param("0.12", "12%", True, id="a hundredth is per cent"),
        pytest.param("0.0", "0", False, id="zero is compared as text"),
        pytest.param("1,000", "1000", False, id="a comma is no number"),
        pytest.param("-3", "3", False, id="sign"),
        pytest.param("PERU", "Peru", True, id="case"),
        pytest.param("Peru ", "Peru", False, id="space"),
        pytest.param("nan", "3", False, id="not a number"),
    ],
)
def test_relaxed_accuracy_allows_five_per_cent_of_a_number(answer: str, truth: str, right: bool) -> None:
    assert relaxed_match(answer, truth) is right


@pytest.mark.parametrize(
    ("answer", "exact", "gqa", "folded"),
    [
        pytest.param("grass", True, True, True, id="equal"),
        pytest.param("Grass..", False, True, True, id="case and full stops"),
        pytest.param(" grass ", True, False, True, id="space at the ends"),
        pytest.param('"grass"', False, False, True, id="punctuation"),
        pytest.param("the grass", False, False, False, id="another word"),
        pytest.param("", False, False, False, id="nothing"),
    ],
)
def test_exact_match_folds_as_much_as_each_evaluator(answer: str, exact: bool, gqa: bool, folded: bool) -> None:
    accepted = ("tree", "grass")
    assert (exact_match(answer, accepted), gqa_match(answer, accepted), folded_match(answer, accepted)) == (
        exact,
        gqa,
        folded,
    )


@pytest.mark.parametrize(
    ("answer", "accepted", "plain", "any_width", "formula"),
    [
        pytest.param("It says Centre.", ("CENTRE",), True, True, False, id="a part, in any case"),
        pytest.param("new\nyork", ("New York",), True, True, False, id="a line break"),
        pytest.param("ＣＥＮＴＲＥ", ("centre",), False, True, False, id="full width"),
        pytest.param("x^{2}", ("x ^ { 2 }",), False, False, True, id="a formula's spaces"),
        pytest.param("center", ("centre",), False, False, False, id="wrong"),
    ],
)
def test_ocrbench_looks_for_an_accepted_answer_in_what_was_said(
    answer: str, accepted: tuple[str, ...], plain: bool, any_width: bool, formula: bool
) -> None:
    assert contains_answer(answer, accepted) is plain
    assert contains_answer_of_any_width(answer, accepted) is any_width
    assert contains_formula(answer, accepted) is formula
