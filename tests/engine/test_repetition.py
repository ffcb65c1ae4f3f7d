"""Answers that go round in a circle are cut, tried once more, and cost no other row a bit of its own."""

import math
from dataclasses import replace

import pytest
import torch

from pipeline.engine.draft import Draft
from pipeline.engine.engine import Engine
from pipeline.engine.repetition import LONGEST_CYCLE, SPAN, find_runaway
from pipeline.engine.rows import Row, draft_of, families
from pipeline.engine.runner import Runner
from pipeline.engine.scheduler import Scheduler
from pipeline.engine.sizes import resolve
from schemas.engine import Sampling
from tests.engine.oracle import FP32, mixed_questions
from tests.engine.test_draft import drafted

# A penalty below 1 prefers what was said before: networks with random weights soon say nothing else.
LOOPING = Sampling(repetition_penalty=0.5, cut_repetition=True, retry_penalty=1.0)
SETTINGS = replace(FP32, slots=8, sampling=LOOPING)
LIMITS = (480, 60, 480, 480, 40, 480, 30)


def first_runaway(token_ids: list[int]) -> tuple[int, int] | None:
    """At which length a runaway is found, and how many tokens are kept."""
    found = ((n, find_runaway(token_ids[:n])) for n in range(1, len(token_ids) + 1))
    return next(((n, kept) for n, kept in found if kept is not None), None)


@pytest.mark.parametrize("cycle", [1, 2, 7, 48, LONGEST_CYCLE])
@pytest.mark.parametrize("before", [0, 1, 100])
def test_a_circle_is_found_after_the_span_and_its_first_round_kept(cycle: int, before: int) -> None:
    token_ids = [*range(1000, 1000 + before), *(list(range(cycle)) * 2 * SPAN)[: 2 * SPAN]]
    found = first_runaway(token_ids)
    assert found is not None
    assert before + SPAN <= found[0] <= before + SPAN + 15
    assert found[1] == before + cycle


@pytest.mark.parametrize(
    "token_ids",
    [
        pytest.param([7] * (SPAN - 1), id="a line of dots just short of the span"),
        pytest.param(list(range(LONGEST_CYCLE + 1)) * 9, id="a round longer than the longest"),
        pytest.param([t for i in range(200) for t in (1, 2, 3, i)], id="an item that counts up"),
        pytest.param([t for i in range(99) for t in [*[5] * 60, i]], id="a contents page: leaders and page numbers"),
        pytest.param(([*[0, 9] * 10, 8] * 18)[:378], id="a table of 18 rows of ten zeros"),
        pytest.param([*[3] * 300, 4, *[3] * 300], id="an interruption"),
    ],
)
def test_what_print_repeats_is_no_runaway(token_ids: list[int]) -> None:
    assert first_runaway(token_ids) is None


def test_the_repeats_are_cut_from_the_text_and_counted_as_drawn(oracle) -> None:
    cut = drafted(oracle, "Total 6.30" + " 0." * 400, max_new_tokens=4000, cut_repetition=True)
    assert (cut.text, cut.finish_reason) == ("Total 6.30 0.", "repetition")
    assert cut.num_generated_tokens == 400  # the first multiple of 16 from 9 + 384 on
    whole = drafted(oracle, "Total 6.30" + " 0." * 400, max_new_tokens=4000)
    assert (len(whole.text), whole.finish_reason) == (1210, "stop")


def test_a_form_with_many_equal_lines_is_read_to_its_end(oracle) -> None:
    form = "\n".join(["Name: ______________", "Date: ____"] * 10) + "\n" + "\n".join(["." * 72] * 4)
    assert drafted(oracle, form, max_new_tokens=999, cut_repetition=True).text == form


def test_nothing_is_cut_before_min_new_tokens(oracle) -> None:
    text = "a" * 600
    assert drafted(oracle, text, max_new_tokens=999, cut_repetition=True, min_new_tokens=601).text == text


def test_a_row_that_ran_away_is_answered_by_its_second_try_if_that_ends(oracle) -> None:
    """Under the retry penalty of 1 the second try is what the network says by itself."""
    samples = [oracle.sample(question) for question in questions()]
    engine = Engine(oracle.model, SETTINGS)
    answers = {answer.id: answer for answer in engine.generate(samples)}
    plain = {a.id: a for a in Engine(oracle.model, replace(SETTINGS, sampling=Sampling())).generate(samples)}
    ended = [id for id in answers if answers[id].finish_reason == "stop"]
    assert ended
    for id in ended:
        assert (answers[id].text, answers[id].mean_logprob) == (plain[id].text, plain[id].mean_logprob)
    assert engine.statistics().num_rows == len(samples)


def test_an_answer_says_that_it_took_two_tries_whichever_of_them_it_is(oracle) -> None:
    samples = [oracle.sample(question) for question in questions()]
    for sampling in (LOOPING, replace(LOOPING, repetition_penalty=0.7)):
        engine = Engine(oracle.model, replace(SETTINGS, sampling=sampling))
        answers = list(engine.generate(samples))
        tried_twice = {answer.id for answer in answers if answer.num_tries == 2}
        assert len(tried_twice) == engine.statistics().num_second_tries > 0
        assert tried_twice >= {answer.id for answer in answers if answer.finish_reason == "repetition"}
        assert {answer.num_tries for answer in answers if answer.id not in tried_twice} <= {1}
    once = Engine(oracle.model, replace(SETTINGS, sampling=replace(LOOPING, retry_penalty=1.0, repetition_penalty=1)))
    assert {answer.num_tries for answer in once.generate(samples)} == {1}


def test_a_row_whose_second_try_does_not_end_is_answered_by_its_first_without_the_repeats(oracle) -> None:
    sample = oracle.sample(questions()[0])
    sampling = replace(LOOPING, repetition_penalty=0.7)
    (answer,) = Engine(oracle.model, replace(SETTINGS, sampling=sampling)).generate([sample])
    whole = replace(sampling, cut_repetition=False)
    (uncut,) = Engine(oracle.model, replace(SETTINGS, sampling=whole)).generate([sample])
    num_kept = len(str(answer.text).split())
    assert answer.finish_reason == "repetition"
    assert num_kept + SPAN - LONGEST_CYCLE <= (answer.num_generated_tokens or 0) < LIMITS[0]
    assert str(uncut.text).startswith(f"{answer.text} ")


def test_a_second_try_of_numbers_that_are_none_leaves_the_first_answer_standing(oracle) -> None:
    prompt = oracle.sample(questions()[0]).prompts[0]
    first = Draft(oracle.model, LOOPING, prompt)
    while first.finish_reason is None:
        first.add(5, -0.5)
    second = first.second_try()
    assert second is not None
    second.add(5, math.nan)
    second.add(oracle.model.stop_ids[0], -0.5)
    assert second.has_answer
    assert second.generation() == replace(first.generation(), num_tries=2)


@pytest.mark.parametrize("place", ["prefill", "tower"])
def test_a_second_try_without_memory_leaves_the_first_answer_standing(oracle, place) -> None:
    samples = [oracle.sample(question) for question in questions()]
    settings = replace(SETTINGS, sampling=replace(LOOPING, repetition_penalty=0.7))
    plain = list(Engine(oracle.model, settings).generate(samples))
    engine = Engine(oracle.model, settings)

    def check(module, inputs):
        if engine.statistics().num_second_tries and (place == "tower" or len(inputs[0]) > 16):
            raise torch.OutOfMemoryError("tried to allocate 9 GiB")

    tower = oracle.model.network.model.vision_tower.embeddings
    module = tower if place == "tower" else oracle.model.decoder.blocks[0].before_attention
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


def test_a_token_that_is_read_late_belongs_to_the_try_it_was_drawn_for(oracle) -> None:
    sizes = resolve(oracle.model, SETTINGS)
    samples = [oracle.sample(question) for question in questions()]
    scheduler = Scheduler(Runner(oracle.model, LOOPING, sizes), sizes, on_gpu=True)
    rows = [Row(sample=s, prompt=s.prompts[0], draft=Draft(oracle.model, LOOPING, s.prompts[0])) for s in samples]
    for row in rows:
        scheduler.add(families([row], 8, oracle.model.image_token_id))
    while not scheduler.idle:
        scheduler.step(more_to_come=False)
    expected = [answer.text for answer in Engine(oracle.model, SETTINGS).generate(samples)]
    assert scheduler.counts["second tries"] > 0
    assert [draft_of(row).generation().text for row in rows] == expected


def questions():
    return [replace(q, max_new_tokens=(n,)) for q, n in zip(mixed_questions(), LIMITS, strict=True)]


def test_a_retry_penalty_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match=r"retry_penalty must be at least 1 and finite, got 0\.9"):
        Sampling(retry_penalty=0.9)
