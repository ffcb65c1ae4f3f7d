import random

import jiwer
import pytest

from pipeline.scoring.reading import Normalisation, Reading, add_up, normalised, nothing_read, read_against


@pytest.mark.parametrize(
    ("truth", "answer", "cer", "wer"),
    [
        pytest.param("Total 6.30", "Total 6.30", 0, 0, id="equal"),
        pytest.param("Total 6.30", "Total 6.80", 1 / 10, 1 / 2, id="one character"),
        pytest.param("Total 6.30", "", 1, 1, id="nothing read"),
        pytest.param("ab", "a b c d", 5 / 2, 4, id="more read than there is"),
        pytest.param("Cake\n3.50", "Cake 3.50", 0, 0, id="a line break is a space"),
        pytest.param("Cake\n3.50", "Cake\n8.50", 1 / 9, 1 / 2, id="words are split at line breaks"),
        pytest.param("cafe\u0301", "caf\u00e9", 0, 0, id="composed or not"),
        pytest.param("", "", 0, 0, id="nothing to read"),
        pytest.param("", "a bc", 4, 2, id="read where nothing is"),
    ],
)
def test_rates_are_edits_over_truth(truth: str, answer: str, cer: float, wer: float) -> None:
    found = read_against(truth, answer)
    assert (found.cer, found.wer) == pytest.approx((cer, wer))


@pytest.mark.parametrize(("truth", "character_edits", "word_edits"), [("Total 6.30", 10, 2), ("", 1, 1), (" \n", 1, 1)])
def test_an_answer_that_failed_has_read_nothing_which_is_wrong_of_an_empty_truth_too(
    truth: str, character_edits: int, word_edits: int
) -> None:
    found = nothing_read(truth)
    assert (found.character_edits, found.word_edits) == (character_edits, word_edits)
    assert (found.cer, found.wer) == (1, 1)


def test_a_corpus_is_all_edits_over_all_truth_and_not_the_mean_of_rows() -> None:
    long, short = read_against("a" * 98, "a" * 98), read_against("ab", "cd")
    assert add_up([long, short]).cer == pytest.approx(2 / 100)


def test_what_is_read_into_an_empty_truth_counts_in_the_corpus() -> None:
    assert add_up([read_against("abcd", "abcd"), read_against("", "x")]).cer == pytest.approx(1 / 4)


def test_an_empty_corpus_has_no_errors() -> None:
    assert add_up([]) == Reading(character_edits=0, num_characters=0, word_edits=0, num_words=0)
    assert add_up([]).cer == 0


@pytest.mark.parametrize(
    ("normalisation", "text"),
    [
        pytest.param("exact", "The  “End”,\n it-is", id="exact"),
        pytest.param("spaces", "The “End”, it-is", id="spaces"),
        pytest.param("words", "the end itis", id="words"),
    ],
)
def test_a_normalisation_does_what_its_name_says(normalisation: Normalisation, text: str) -> None:
    assert normalised(" The  “End”,\n it-is\t", normalisation) == text


def test_corpus_rates_are_those_of_jiwer() -> None:
    draw = random.Random(0)
    truths, answers = (
        [" ".join(draw.choices(["a", "bc", "def"], k=draw.randint(1, 9))) for _ in range(300)] for _ in "ab"
    )
    found = add_up(read_against(*pair) for pair in zip(truths, answers, strict=True))
    assert found.cer == pytest.approx(jiwer.cer(truths, answers))
    assert found.wer == pytest.approx(jiwer.wer(truths, answers))
