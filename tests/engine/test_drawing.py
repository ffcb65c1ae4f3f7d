"""An engine that is told to draw otherwise answers as one that was made so, over the same weights."""

from dataclasses import replace

import pytest

from pipeline.engine.engine import Engine
from schemas.engine import Sampling
from tests.engine.oracle import FP32, mixed_questions

WAYS = [
    pytest.param(Sampling(temperature=1.5, top_k=40, seed=3), id="drawn"),
    pytest.param(Sampling(repetition_penalty=1.4), id="penalty"),
    pytest.param(Sampling(cut_repetition=True), id="second tries"),
    pytest.param(Sampling(stop=("<user>", "e")), id="stop"),
    pytest.param(Sampling(min_new_tokens=12), id="at least"),
]


def exact(engine: Engine, samples):
    return [(a.id, a.text, a.finish_reason, a.mean_logprob) for a in engine.generate(samples)]


def made(oracle, sampling: Sampling) -> Engine:
    return Engine(oracle.with_text, replace(FP32, sampling=sampling))


@pytest.mark.parametrize("sampling", WAYS)
def test_told_to_draw_otherwise_it_answers_as_one_made_so_and_back_again(oracle, sampling) -> None:
    samples = [oracle.sample(question) for question in mixed_questions()]
    engine, plain = made(oracle, Sampling()), exact(made(oracle, Sampling()), samples)
    assert exact(engine, samples) == plain
    engine.draw_as(sampling)
    assert exact(engine, samples) == exact(made(oracle, sampling), samples)
    engine.draw_as(Sampling())
    assert exact(engine, samples) == plain


def test_what_was_done_before_stays_counted(oracle) -> None:
    samples = [oracle.sample(question) for question in mixed_questions()]
    engine = made(oracle, Sampling())
    exact(engine, samples)
    before = engine.statistics()
    engine.draw_as(Sampling(seed=1))
    assert engine.statistics() == before
    exact(engine, samples)
    assert engine.statistics().num_rows == 2 * before.num_rows == 2 * len(samples)
    assert engine.statistics().decode_s > before.decode_s


def test_a_closed_engine_draws_nothing(oracle) -> None:
    engine = made(oracle, Sampling())
    engine.close()
    with pytest.raises(RuntimeError, match="the engine is closed"):
        engine.draw_as(Sampling(seed=1))
