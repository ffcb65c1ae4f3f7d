"""A page read in strips is one answer: its text in order, once, with what happened in each strip."""

from dataclasses import replace

import numpy as np
import pytest

from pipeline.stages.strips import join_answers, join_texts, samples_of_strips
from schemas.answer import Answer, Generation, StripAnswer, answer_from
from schemas.errors import Failure
from schemas.sample import Prompt, Sample, Size, Strip

STRIPS = (Strip(top=10, bottom=110, num_tiles=2), Strip(top=90, bottom=190, num_tiles=1))
APART = (Strip(top=0, bottom=100, num_tiles=1), Strip(top=100, bottom=200, num_tiles=1))


def asked(id: str) -> Prompt:
    return Prompt(id=id, text="Read.", token_ids=np.arange(1, 6, dtype=np.int32), num_image_tokens=3, max_new_tokens=9)


def a_page(**changes) -> Sample:
    """A page in two strips, asked twice."""
    tiles = np.arange(3 * 2 * 2 * 3, dtype=np.uint8).reshape(3, 2, 2, 3)
    page = Sample(
        id="page",
        prompts=(asked("a"), asked("b"), asked("a"), asked("b")),
        image_sizes=(Size(80, 200),),
        tiles_per_image=(3,),
        tiles=tiles,
        image_sha256="ab",
        strips=STRIPS,
    )
    return replace(page, **changes)


def answered(sample: Sample, texts: list[str], reasons: list[str], logprobs: list[float]) -> list[Answer]:
    pairs = [(row_range, prompt) for row_range in samples_of_strips(sample) for prompt in row_range.prompts]
    return [
        answer_from(
            row_range,
            prompt,
            Generation(
                text=text, finish_reason=reason, num_generated_tokens=i + 1, mean_logprob=logprob, num_tries=1 + i // 3
            ),
        )
        for i, ((row_range, prompt), text, reason, logprob) in enumerate(
            zip(pairs, texts, reasons, logprobs, strict=True)
        )
    ]


def test_each_strip_is_a_sample_with_its_own_tiles_size_and_prompts() -> None:
    first, second = samples_of_strips(a_page())
    assert (first.id, second.id) == ("page#strip=1", "page#strip=2")
    assert (first.image_sizes, second.image_sizes) == ((Size(80, 100),), (Size(80, 100),))
    assert np.array_equal(np.concatenate([first.tiles, second.tiles]), a_page().tiles)
    assert [[prompt.id for prompt in row_range.prompts] for row_range in (first, second)] == [["a", "b"], ["a", "b"]]


def test_a_sample_without_strips_is_itself() -> None:
    whole = a_page(strips=())
    assert list(samples_of_strips(whole)) == [whole]
    answers = answered(whole, ["x"] * 4, ["stop"] * 4, [0.0] * 4)
    assert list(join_answers([whole], answers)) == answers


def test_a_page_has_one_answer_a_prompt_with_its_counts_added_up() -> None:
    answers = answered(a_page(), ["One", "1", "Two", "2"], ["stop", "stop", "length", "stop"], [-1.0, 0.0, -2.0, 0.0])
    a, b = join_answers([a_page()], answers)
    assert (a.id, a.prompt_id, b.prompt_id) == ("page", "a", "b")
    assert (a.text, b.text) == ("One\nTwo", "1\n2")
    assert (a.num_prompt_tokens, a.num_image_tokens, a.num_generated_tokens, a.num_tiles) == (10, 6, 1 + 3, 3)
    assert (a.image_width, a.image_height, a.image_sha256) == (80, 200, "ab")
    assert (a.num_tries, b.num_tries) == (1, 2)
    assert a.mean_logprob == pytest.approx((-1.0 * 1 + -2.0 * 3) / 4)
    assert a.strips == (
        StripAnswer(top=10, bottom=110, text="One", finish_reason="stop"),
        StripAnswer(top=90, bottom=190, text="Two", finish_reason="length"),
    )


@pytest.mark.parametrize(
    ("reasons", "worst"),
    [(("stop", "stop"), "stop"), (("length", "stop"), "length"), (("length", "repetition"), "repetition")],
)
def test_the_worst_end_of_a_strip_is_the_end_of_the_page(reasons: tuple[str, str], worst: str) -> None:
    answers = answered(a_page(), list("wxyz"), [reasons[0], "stop", reasons[1], "stop"], [0.0] * 4)
    assert next(join_answers([a_page()], answers)).finish_reason == worst


def test_a_failed_strip_fails_its_page_with_its_number_and_leaves_the_others_readable() -> None:
    first, second = samples_of_strips(a_page())
    failure = Failure(stage="generate", type="NotFinite", message="overflow")
    failed = Prompt(id="a", text="Read.", failure=failure)
    answers = answered(a_page(), ["One", "1", "Two", "2"], ["stop"] * 4, [0.0] * 4)
    answers[2] = answer_from(second, failed, None)
    a, b = join_answers([a_page()], answers)
    assert (a.status, a.text, a.error_type) == ("error", None, "NotFinite")
    assert a.error_message == "strip 2 of 2: overflow"
    assert [strip.text for strip in a.strips or ()] == ["One", None]
    assert b.status == "ok"


@pytest.mark.parametrize(
    ("above", "below", "joined"),
    [
        pytest.param(
            "Terms apply.\nThe price is 4.50 a day\nTne nrice", "The price is 4.50 a day\nThe price of a week is 20",
            "Terms apply.\nThe price is 4.50 a day\nThe price of a week is 20", id="a line both have, and half a line",
        ),
        pytest.param(
            "one two three four five six", "tive six\nfour five six seven eight nine ten eleven",
            "one two three four five six seven eight nine ten eleven", id="a half line at the head of the lower",
        ),
        pytest.param("alpha beta", "gamma delta", "alpha beta\ngamma delta", id="nothing in common: both are kept"),
        pytest.param("0 0", "0 0 7 8 9 1 2", "0 0\n0 0 7 8 9 1 2", id="too little to be sure: twice rather than lost"),
        pytest.param("", "Two", "Two", id="an empty strip above"),
        pytest.param("One", "", "One", id="an empty strip below"),
    ],
)  # fmt: skip
def test_what_two_overlapping_strips_both_read_is_there_once(above: str, below: str, joined: str) -> None:
    assert join_texts([above, below], STRIPS) == joined


def test_strips_that_do_not_overlap_keep_lines_that_are_equal() -> None:
    assert join_texts(["Total due today 5.00", "Total due today 5.00"], APART) == "\n".join(
        ["Total due today 5.00"] * 2
    )


def test_text_repeated_far_from_the_cut_is_no_overlap() -> None:
    below = "completely different words stand here and go on and on until at last Terms apply to all of it"
    assert join_texts(["Terms apply to all of it", below], STRIPS) == f"Terms apply to all of it\n{below}"


@pytest.mark.parametrize(
    ("above", "below"),
    [
        pytest.param(
            "2024-01-05 08:00 OK\n2024-01-05 08:15 no\n2024-01-05 08:30 up",
            "2024-01-05 08:45 OK\n2024-01-05 09:00 no\n2024-01-05 09:15 up", id="lines that begin with a date",
        ),
        pytest.param(
            "Delivery Monday 0.50\nDelivery Tuesday 1.50\nDelivery Friday 2.50",
            "Delivery Sunday 3.50\nDelivery Monday 4.50\nDelivery Tuesday 5.50", id="names that come again",
        ),
        pytest.param(
            "Item 01 0.00 0.00 0.00\nItem 02 0.00 0.00 0.00\nItem 03 0.00 0.00 0.00",
            "Item 04 0.00 0.00 0.00\nItem 05 0.00 0.00 0.00\nItem 06 0.00 0.00 0.00", id="numbered rows",
        ),
        pytest.param("0.00 0.00 0.00\n" * 3 + "0.00 0.00 0.00", "0.00 0.00 0.00\n0.00 0.00 0.00", id="equal rows"),
        pytest.param("0.00 0.00 0.00 0.00", "0.00 0.00 0.00 0.00", id="equal cells without a line break"),
        pytest.param("See you on Monday at 08:30", "at 09:30 See you on Monday", id="words in a circle"),
        pytest.param("The price of a\nwhole day\nTerms\nLast", "whole day\nAny other line\nEnd", id="two lines aside"),
        pytest.param("See the list below on Friday", "See the list below on Sunday at home", id="another weekday"),
    ],
)  # fmt: skip
def test_no_line_is_dropped_because_others_are_like_it(above: str, below: str) -> None:
    assert join_texts([above, below], STRIPS) == f"{above}\n{below}"


def test_a_page_whose_strip_was_tried_twice_says_what_was_read_at_first() -> None:
    answers = answered(a_page(), ["One", "1", "Two", "2"], ["stop"] * 4, [0.0] * 4)
    answers[2] = replace(answers[2], first_text="Two two two", num_cut_tokens=0)
    a, b = join_answers([a_page()], answers)
    assert (a.text, a.first_text, b.first_text) == ("One\nTwo", "One\nTwo two two", None)
    assert (a.num_cut_tokens, b.num_cut_tokens) == (0, 0)
