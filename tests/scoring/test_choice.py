import random
from collections.abc import Callable

import pytest

from pipeline.scoring.choice import (
    first_letter,
    inferred_letter,
    leading_letter,
    lettered,
    lettered_if_there,
    mmmu_letter,
    scienceqa_letter,
)
from pipeline.scoring.mmmu import open_match
from pipeline.scoring.pope import outcome, said

ANIMALS = ("a cat", "a dog", "a red cow")


def test_options_are_lettered() -> None:
    assert lettered(("cat", "dog")) == "A. cat\nB. dog"


RULES: dict[str, Callable[[str], str | None]] = {
    "scienceqa": lambda answer: scienceqa_letter(answer, len(ANIMALS)),
    "ai2d": lambda answer: leading_letter(answer, len(ANIMALS)),
    "seedbench": lambda answer: first_letter(answer, len(ANIMALS)),
    "mmbench": lambda answer: inferred_letter(answer, ANIMALS),
    "mmmu": lambda answer: mmmu_letter(answer, ANIMALS),
}


@pytest.mark.parametrize(
    ("answer", "letters"),  # in the order of RULES; - is none
    [
        pytest.param("B", "BBBBB", id="the letter"),
        pytest.param("B. a dog", "BBBB-", id="letter and option"),
        pytest.param("B.", "-BBBB", id="a full stop"),
        pytest.param("(B)", "-B-BB", id="brackets"),
        pytest.param("b", "-BB--", id="lower case"),
        pytest.param("B\u3002", "--B--", id="a full stop that is not ASCII"),
        pytest.param("The answer is B.", "B--BB", id="a sentence"),
        pytest.param("The answer is B. The answer is C.", "---BC", id="two sentences"),
        pytest.param("Because it barks.", "--B--", id="a word that begins with a letter"),
        pytest.param("It is a dog.", "---B-", id="the option, in few words"),
        pytest.param("It is quite plain to me that this is a dog", "----B", id="the option, in many words"),
        pytest.param("a cat or a dog", "--A--", id="two options"),
        pytest.param("A or B", "--A-B", id="two letters"),
        pytest.param("D", "-----", id="no option has this letter"),
        pytest.param("I cannot tell", "-----", id="nothing"),
        pytest.param("", "-----", id="empty"),
    ],
)
def test_each_benchmark_reads_letters_by_its_own_rule(answer: str, letters: str) -> None:
    assert "".join(rule(answer) or "-" for rule in RULES.values()) == letters


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        pytest.param("Cannot determine the answer. It may be a dog", None, id="a refusal, whatever it names"),
        pytest.param("I'm sorry, but without the image provided, B", None, id="a refusal with a letter"),
        pytest.param("Z. a dog", None, id="the letter for none of them"),
        pytest.param("B, not Z", "B", id="that letter beside an option's"),
        pytest.param("D. a dog", "B", id="a letter without an option, and the text of one"),
        pytest.param("Failed to obtain answer via API. B: a dog", "B", id="a failure that names an option"),
        pytest.param("Failed to obtain answer via API. B", None, id="a failure with a letter alone"),
    ],
)
def test_mmbench_reads_refusals_as_vlmevalkit_does(answer: str, letter: str | None) -> None:
    assert inferred_letter(answer, ("a kitten in a large basket", "a dog", "a cow on a green meadow")) == letter


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        pytest.param("C", "C", id="the letter of its own place"),
        pytest.param("a cow", "C", id="its text"),
        pytest.param("B", None, id="the letter of none"),
        pytest.param("The answer is B", None, id="that in a sentence"),
        pytest.param("B or D", "D", id="that beside one that is there"),
        pytest.param("B. a dog", "D", id="that beside a text"),
        pytest.param("B, so Z", None, id="that beside the letter for none of them"),
        pytest.param("", None, id="nothing, which is in no option"),
    ],
)
def test_an_option_that_is_not_there_leaves_the_others_their_letters(answer: str, letter: str | None) -> None:
    options = ("a cat", "", "a cow", "a dog")
    assert lettered_if_there(options) == "A. a cat\nC. a cow\nD. a dog"
    assert inferred_letter(answer, options) == letter


@pytest.mark.parametrize("name", RULES)
def test_a_letter_is_one_of_the_options_or_none_and_the_same_every_time(name: str) -> None:
    draw = random.Random(0)
    words = ("A", "B", "D", "(C)", "a", "cat", "answer", "is", "The", "E.")
    for _ in range(300):
        answer = " ".join(draw.choices(words, k=draw.randint(0, 7)))
        assert RULES[name](answer) in ("A", "B", "C", None)
        assert RULES[name](answer) == RULES[name](answer)


@pytest.mark.parametrize(
    ("answer", "accepted", "right"),
    [
        pytest.param("The answer is 3.141", ("3.14",), True, id="two decimals"),
        pytest.param("1,000 kg", ("1000",), True, id="commas"),
        pytest.param("x = 5", ("5",), True, id="after an equals sign"),
        pytest.param("It is Blue.", ("blue",), True, id="text"),
        pytest.param("bluebird", ("blue",), True, id="a part of the text"),
        pytest.param("abc", ("a",), False, id="a single letter must stand alone"),
        pytest.param("it is 12", ("2",), False, id="a digit of a number"),
        pytest.param("", ("a",), False, id="nothing"),
    ],
)
def test_an_open_answer_is_right_by_number_or_text(answer: str, accepted: tuple[str, ...], right: bool) -> None:
    assert open_match(answer, accepted) is right


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        pytest.param("Yes", "yes", id="yes"),
        pytest.param("No, there is not.", "no", id="no"),
        pytest.param("There is no dog", "no", id="no in the sentence"),
        pytest.param("Yes. No", "yes", id="only the first sentence"),
        pytest.param("I cannot tell", "yes", id="what is not no is yes"),
        pytest.param("NO", "yes", id="capitals are not no"),
        pytest.param("no\nway", "yes", id="words are parted by spaces alone"),
        pytest.param(" ", None, id="nothing"),
    ],
)
def test_pope_reads_yes_unless_no_is_said(answer: str, found: str | None) -> None:
    assert said(answer) == found


def test_an_answer_that_is_neither_counts_as_a_missed_yes_only() -> None:
    assert outcome(None, "yes") == outcome("no", "yes") == (0, 0, 0, 1)
    assert outcome(None, "no") == (0, 0, 0, 0)
