"""An engine that is told to sample otherwise answers as one that was made so, over the same weights."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch

from demo.checkpoint import Shape
from pipeline.engine.engine import Engine
from pipeline.engine.network.load import load_model
from pipeline.engine.reference.engine import ReferenceEngine
from schemas.engine import EngineSettings, Sampling
from schemas.form import Form
from tests.engine.oracle import FP32, Oracle, mixed_questions
from tests.tiny import build, checkpoint

WAYS = [
    pytest.param(Sampling(temperature=1.5, top_k=40, seed=3), id="sampled"),
    pytest.param(Sampling(repetition_penalty=1.4), id="penalty"),
    pytest.param(Sampling(cut_repetition=True), id="retries"),
    pytest.param(Sampling(stop=("<user>", "e")), id="stop"),
    pytest.param(Sampling(min_new_tokens=12), id="at least"),
]


def exact(engine: Engine, samples):
    return [(a.id, a.text, a.finish_reason, a.mean_logprob) for a in engine.generate(samples)]


def made(oracle, sampling: Sampling) -> Engine:
    return Engine(oracle.with_text, replace(FP32, sampling=sampling))


@pytest.mark.parametrize("sampling", WAYS)
def test_told_to_sample_otherwise_it_answers_as_one_made_so_and_back_again(oracle, sampling) -> None:
    samples = [oracle.sample(question) for question in mixed_questions()]
    engine, plain = made(oracle, Sampling()), exact(made(oracle, Sampling()), samples)
    assert exact(engine, samples) == plain
    engine.set_sampling(sampling)
    assert exact(engine, samples) == exact(made(oracle, sampling), samples)
    engine.set_sampling(Sampling())
    assert exact(engine, samples) == plain


@pytest.mark.parametrize("engine", [Engine, ReferenceEngine])
@pytest.mark.parametrize("form", [None, Form(kind="bad_words", text='["k"]')])
def test_a_special_token_ends_answers_exactly_where_it_is_a_stop_string_of_now(oracle, engine, form) -> None:
    samples = [oracle.sample(question) for question in mixed_questions(max_new_tokens=(60,))]
    ways = [Sampling(temperature=5.0, stop=stop, form=form, seed=1) for stop in ((), ("<user>", "<assistant>"))]
    loaded = [engine.load(str(checkpoint()), settings=replace(FP32, sampling=way)) for way in ways]
    expected = [exact(one, samples) for one in loaded]
    for one, way in zip(loaded, reversed(ways), strict=True):
        one.set_sampling(way)
    assert [exact(one, samples) for one in reversed(loaded)] == expected
    assert expected[0] != expected[1]


def test_what_was_done_before_stays_counted(oracle) -> None:
    samples = [oracle.sample(question) for question in mixed_questions()]
    engine = made(oracle, Sampling())
    exact(engine, samples)
    before = engine.statistics()
    engine.set_sampling(Sampling(seed=1))
    assert engine.statistics() == before
    exact(engine, samples)
    assert engine.statistics().num_rows == 2 * before.num_rows == 2 * len(samples)
    assert engine.statistics().decode_s > before.decode_s


def test_statistics_can_be_asked_for_at_any_time(oracle) -> None:
    """Another thread does, for units that are through while the next ones change how tokens are sampled."""
    engine, done = made(oracle, Sampling()), threading.Event()
    asked = []

    def ask() -> None:
        while not done.is_set():
            asked.append(engine.statistics().num_rows)

    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(ask)
        for seed in range(200):
            engine.set_sampling(Sampling(seed=seed))
        done.set()
        asking.result(timeout=60)
    assert set(asked) == {0}


def test_a_closed_engine_samples_nothing(oracle) -> None:
    engine = made(oracle, Sampling())
    engine.close()
    with pytest.raises(RuntimeError, match="the engine is closed"):
        engine.set_sampling(Sampling(seed=1))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_the_step_is_recorded_anew_and_one_cache_is_held() -> None:
    settings = EngineSettings(device="cuda", slots=16, prefill_tokens=2048, capacity=1024)
    shape = Shape(text_width=512, text_hidden=1024, text_heads=8, text_kv_heads=2, text_layers=3)
    folder = str(build(shape))
    oracle = Oracle(load_model(folder, settings), folder)
    samples = [oracle.sample(question) for question in mixed_questions()]
    way = Sampling(temperature=1.5, repetition_penalty=1.2, seed=3)
    expected = exact(Engine(oracle.with_text, replace(settings, sampling=way)), samples)
    engine = Engine(oracle.with_text, settings)
    plain = exact(engine, samples)
    held = torch.cuda.memory_allocated()
    engine.set_sampling(way)
    assert exact(engine, samples) == expected != plain
    engine.set_sampling(Sampling())
    assert exact(engine, samples) == plain
    assert torch.cuda.memory_allocated() <= held + 2**20
