"""Answers that go round in a circle are cut, tried once more, and cost no other row a bit of its own."""

import math
from dataclasses import replace

import pytest
import torch

from pipeline.engine.completion import Completion
from pipeline.engine.engine import Engine
from pipeline.engine.model_runner import ModelRunner
from pipeline.engine.prefill_group import group_sequences
from pipeline.engine.repetition import EARLY, ROUNDS, SPAN, Runaway, find_runaway
from pipeline.engine.scheduler import Scheduler
from pipeline.engine.shapes import resolve_shapes
from schemas.engine import Sampling
from tests.engine.groups import sequence_of
from tests.engine.oracle import FP32, mixed_questions
from tests.engine.test_completion import Unreadable, completed

# A penalty below 1 prefers what was said before: networks with random weights soon say nothing else.
LOOPING = Sampling(repetition_penalty=0.5, cut_repetition=True, retry_penalty=1.0)
SETTINGS = replace(FP32, slots=8, sampling=LOOPING)
LIMITS = (480, 60, 480, 480, 40, 480, 30)


CERTAIN, UNSURE = -1e-5, -0.5  # log-probabilities of every token


def looping(text: str, rounds: int, room: int, logprob: float = CERTAIN) -> list[int]:
    """The lengths at which a circle is found in an answer that goes round in one until its room is full."""
    token_ids = (list(text.encode()) * rounds)[:room]
    return [n for n in range(1, room + 1) if find_runaway(token_ids[:n], [logprob] * n, room)][:1]


@pytest.mark.parametrize("cycle", [1, 2, 7, 48, SPAN // ROUNDS])
@pytest.mark.parametrize("before", [0, 1, 100])
def test_a_circle_that_has_filled_the_room_is_found_with_its_beginning(cycle: int, before: int) -> None:
    token_ids = [*range(1000, 1000 + before), *(list(range(cycle)) * 2 * SPAN)[: SPAN + 30]]
    found = find_runaway(token_ids, [UNSURE] * len(token_ids), room=len(token_ids))
    assert found == Runaway(start=before, cycle=cycle)
    assert found.whole_rounds(len(token_ids)) == before + (SPAN + 30) // cycle * cycle
    assert find_runaway(token_ids, [UNSURE] * len(token_ids), room=len(token_ids) + 1) is None


@pytest.mark.parametrize(
    ("room", "logprob", "length"),
    [
        pytest.param(4096, CERTAIN, 2048, id="half of a large room"),
        pytest.param(2000, CERTAIN, EARLY, id="most of a small one"),
        pytest.param(4096, UNSURE, 4096, id="all of it where the model is not certain of the next round"),
        pytest.param(400, CERTAIN, 400, id="all of the smallest"),
        pytest.param(SPAN - 1, CERTAIN, None, id="too small to tell"),
    ],
)
def test_a_circle_runs_until_it_is_known_that_it_would_fill_the_room(room, logprob, length) -> None:
    assert looping("the cat and ", 999, room, logprob) == ([] if length is None else [length])


PRINT = {
    "laughter": "ha" * 400,
    "rows of zeros": "0,0,0,0,0,0\n" * 30,
    "a table of equal cells": "| 0.00 | 0.00 | 0.00 |\n" * 60,
    "a form of empty rows": "Name: ________  Date: ______\n" * 40,
    "a refrain": "\n\n".join(["Row, row, row your boat\nGently down the stream\nLife is but a dream"] * 12),
    "blank lines": "Top" + "\n" * 500 + "Bottom",
    "leaders of dots": "Chapter 1 " + "." * 900 + " 3",
    "binary digits": "01" * 300,
    "nulls": "[" + "null, " * 200 + "null]",
    "one emoji": "🙂" * 250,
}


@pytest.mark.parametrize("logprob", [CERTAIN, UNSURE])
@pytest.mark.parametrize("name", PRINT)
def test_print_that_repeats_and_comes_to_its_end_is_kept(oracle, name: str, logprob: float) -> None:
    read = completed(oracle, PRINT[name], max_new_tokens=4096, logprob=logprob, cut_repetition=True)
    assert (read.text, read.finish_reason, read.num_cut_tokens) == (PRINT[name], "stop", 0)


def test_whole_rounds_up_to_the_cut_are_kept_and_what_is_cut_is_counted(oracle) -> None:
    cut = completed(oracle, "Total 6.30" + " 0.5" * 900, max_new_tokens=2000, logprob=CERTAIN, cut_repetition=True)
    assert (cut.text, cut.finish_reason) == ("Total 6.30" + " 0.5" * 397, "repetition")
    assert (cut.num_generated_tokens, cut.num_cut_tokens) == (1600, 2)


@pytest.mark.parametrize(("before", "letter"), [("Line。", "あ"), ("Say 🙂", "😂"), ("", "é")])
@pytest.mark.parametrize("room", [1200, 1201, 1202, 1203])
def test_a_cut_is_never_inside_a_character(oracle, before: str, letter: str, room: int) -> None:
    cut = completed(oracle, before + letter * 999, max_new_tokens=room, end=False, cut_repetition=True)
    assert cut.finish_reason == "repetition"
    assert cut.text == before + letter * ((room - len(before.encode())) // len(letter.encode()))
    assert cut.num_cut_tokens == room - len(cut.text.encode())


def test_nothing_is_cut_before_min_new_tokens(oracle) -> None:
    text = "a" * 600
    cut = {"max_new_tokens": 600, "end": False, "cut_repetition": True}
    assert completed(oracle, text, min_new_tokens=601, **cut).finish_reason == "length"
    assert completed(oracle, text, min_new_tokens=600, **cut).finish_reason == "repetition"


def test_a_row_that_ran_away_is_answered_by_its_retry_if_that_ends(oracle) -> None:
    """Under the retry penalty of 1 the retry is what the network says by itself."""
    samples = [oracle.sample(question) for question in questions()]
    engine = Engine(oracle.model, SETTINGS)
    answers = {answer.id: answer for answer in engine.generate(samples)}
    plain = {a.id: a for a in Engine(oracle.model, replace(SETTINGS, sampling=Sampling())).generate(samples)}
    uncut = replace(SETTINGS, sampling=replace(LOOPING, cut_repetition=False))
    first = {answer.id: answer.text for answer in Engine(oracle.model, uncut).generate(samples)}
    ended = [id for id in answers if answers[id].finish_reason == "stop"]
    assert ended
    for id in ended:
        assert str(first[id]).startswith(f"{answers[id].first_text} ")
        assert answers[id].num_cut_tokens == 0
        assert (answers[id].text, answers[id].mean_logprob) == (plain[id].text, plain[id].mean_logprob)
    assert engine.statistics().num_rows == len(samples)


def test_an_answer_says_that_it_took_two_tries_whichever_of_them_it_is(oracle) -> None:
    samples = [oracle.sample(question) for question in questions()]
    for sampling in (LOOPING, replace(LOOPING, repetition_penalty=0.7)):
        engine = Engine(oracle.model, replace(SETTINGS, sampling=sampling))
        answers = list(engine.generate(samples))
        tried_twice = {answer.id for answer in answers if answer.num_tries == 2}
        assert len(tried_twice) == engine.statistics().num_retries > 0
        assert tried_twice >= {answer.id for answer in answers if answer.finish_reason == "repetition"}
        assert {answer.num_tries for answer in answers if answer.id not in tried_twice} <= {1}
    once = Engine(oracle.model, replace(SETTINGS, sampling=replace(LOOPING, retry_penalty=1.0, repetition_penalty=1)))
    assert {answer.num_tries for answer in once.generate(samples)} == {1}


def test_a_row_whose_retry_does_not_end_is_answered_by_its_first_without_the_repeats(oracle) -> None:
    sample = oracle.sample(questions()[0])
    sampling = replace(LOOPING, repetition_penalty=0.7)
    (answer,) = Engine(oracle.model, replace(SETTINGS, sampling=sampling)).generate([sample])
    whole = replace(sampling, cut_repetition=False)
    (uncut,) = Engine(oracle.model, replace(SETTINGS, sampling=whole)).generate([sample])
    num_kept = len(str(answer.text).split())
    assert (answer.finish_reason, answer.first_text) == ("repetition", None)
    assert num_kept + (answer.num_cut_tokens or 0) == answer.num_generated_tokens == LIMITS[0]
    assert str(uncut.text).startswith(str(answer.text))


def test_a_retry_of_numbers_that_are_none_leaves_the_first_answer_standing(oracle) -> None:
    prompt = oracle.sample(questions()[0]).prompts[0]
    first = Completion(oracle.model, LOOPING, prompt)
    while first.finish_reason is None:
        first.append(5, -0.5)
    second = first.retry()
    assert second is not None
    second.append(5, math.nan)
    second.append(oracle.model.stop_ids[0], -0.5)
    assert second.has_answer
    assert second.generation() == replace(first.generation(), num_tries=2)


def tried_twice(oracle, first: int, second: int, unreadable: int) -> Completion:
    """The retry of a prompt that says `first` for ever and then `second`; one of them cannot be decoded."""
    model = replace(oracle.model, tokenizer=Unreadable(unreadable))
    attempt = Completion(model, LOOPING, oracle.sample(questions()[0]).prompts[0])
    while attempt.finish_reason is None:
        attempt.append(first, -0.5)
    again = attempt.retry()
    assert again is not None
    again.append(second, -0.5)
    again.append(oracle.model.stop_ids[0], -0.5)
    return again


def test_a_retry_that_cannot_be_decoded_leaves_the_first_answer_standing(oracle) -> None:
    found = tried_twice(oracle, 5, 7, unreadable=7)
    answer = found.generation()
    assert (found.failure, answer.finish_reason, answer.num_tries, answer.first_text) == (None, "repetition", 2, None)
    assert answer.text == " ".join(["5"] * 480)


def test_a_first_try_that_cannot_be_decoded_is_answered_by_the_second_or_fails_its_row(oracle) -> None:
    found = tried_twice(oracle, 5, 7, unreadable=5)
    answer = found.generation()
    assert (found.failure, answer.text, answer.first_text, answer.num_tries) == (None, "7", None, 2)
    neither = tried_twice(oracle, 5, 5, unreadable=5)
    neither.generation()
    assert neither.failure is not None
    assert neither.failure.type == "Undecodable"


@pytest.mark.parametrize("step", ["prefill", "tower"])
def test_a_retry_without_memory_leaves_the_first_answer_standing(oracle, step) -> None:
    samples = [oracle.sample(question) for question in questions()]
    settings = replace(SETTINGS, sampling=replace(LOOPING, repetition_penalty=0.7))
    plain = list(Engine(oracle.model, settings).generate(samples))
    engine = Engine(oracle.model, settings)

    def check(module, inputs):
        if engine.statistics().num_retries and (step == "tower" or len(inputs[0]) > 16):
            raise torch.OutOfMemoryError("tried to allocate 9 GiB")

    tower = oracle.model.network.model.vision_tower.embeddings
    module = tower if step == "tower" else oracle.model.decoder.blocks[0].before_attention
    handle = module.register_forward_pre_hook(check)
    answers = list(engine.generate(samples))
    handle.remove()
    assert [answer.status for answer in answers] == ["ok"] * len(samples)
    assert engine.statistics().num_out_of_memory > 0
    kept = [(mine, its) for mine, its in zip(answers, plain, strict=True) if its.finish_reason == "repetition"]
    assert kept
    assert all(mine == its for mine, its in kept)


def test_one_row_that_runs_away_changes_no_number_of_the_others(oracle) -> None:
    samples = [oracle.sample(question) for question in questions()]
    together = {a.id: a for a in Engine(oracle.model, SETTINGS).generate(samples)}
    for sample in samples:
        (alone,) = Engine(oracle.model, SETTINGS).generate([sample])
        assert alone == together[sample.id]


def test_watching_for_repetition_changes_no_answer_without_any(oracle) -> None:
    samples = [oracle.sample(question) for question in mixed_questions(max_new_tokens=(60,))]
    watching = replace(SETTINGS, sampling=Sampling(cut_repetition=True))
    assert list(Engine(oracle.model, watching).generate(samples)) == list(
        Engine(oracle.model, replace(SETTINGS, sampling=Sampling())).generate(samples)
    )


def test_a_token_that_is_read_late_belongs_to_the_attempt_it_was_sampled_for(oracle) -> None:
    shapes = resolve_shapes(oracle.model, SETTINGS)
    samples = [oracle.sample(question) for question in questions()]
    runner = ModelRunner(oracle.model, LOOPING, shapes)
    scheduler = Scheduler(runner, shapes, on_gpu=True)
    sequences = [sequence_of(s, s.prompts[0], oracle.model, LOOPING) for s in samples]
    for sequence in sequences:
        scheduler.add(group_sequences([sequence], 8, oracle.model.image_token_id))
    while not scheduler.is_idle:
        scheduler.step(more_to_come=False)
    expected = [answer.text for answer in Engine(oracle.model, SETTINGS).generate(samples)]
    assert runner.counters.num_retries > 0
    assert [sequence.answer().text for sequence in sequences] == expected


def questions():
    return [replace(q, max_new_tokens=(n,)) for q, n in zip(mixed_questions(), LIMITS, strict=True)]


def test_a_retry_penalty_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match=r"retry_penalty must be at least 1 and finite, got 0\.9"):
        Sampling(retry_penalty=0.9)
