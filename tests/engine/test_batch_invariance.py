"""Batch invariance: the same answer bit for bit, whatever else is waiting or running, and in whatever slot."""

import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from pipeline.engine.engine import Engine
from pipeline.engine.network.load import load_model
from schemas.engine import EngineSettings, Sampling
from tests.engine.oracle import Oracle, Question, mixed_questions, picture
from tests.tiny import checkpoint

# Groups of several rows, fewer slots than rows, several tiles a call: everything that a row could depend on.
CROWDED = EngineSettings(slots=5, prefill_tokens=1024, bucket=32, tiles_per_call=8, look_ahead=64)
TEXTS = ("What is this?", "Where is it?", "How many of them are there, and of which colour?")


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def crowded(request) -> Oracle:
    """The oracle of a network in either precision."""
    settings = replace(CROWDED, dtype=request.param)
    return Oracle(load_model(str(checkpoint("llama")), settings), str(checkpoint("llama")))


def samples_of(oracle: Oracle):
    """Rows of one prompt and of three, with and without images, some of them of the same length."""
    questions = mixed_questions(max_new_tokens=(9,))
    questions += [replace(q, id=f"{q.id}-again") for q in questions[:3]]
    questions += [replace(q, id=f"{q.id}-thrice", texts=TEXTS) for q in questions[:4]]
    questions += [Question(id="none", texts=TEXTS), Question(id="long", texts=("Why? " * 40,))]
    return [oracle.sample(question) for question in questions]


def exact(engine: Engine, samples) -> dict[tuple[str, str], tuple[str | None, float | None]]:
    """Text and log-probability of every answer: a number that moved in its last bit would show."""
    return {(a.id, a.prompt_id): (a.text, a.mean_logprob) for a in engine.generate(samples)}


@pytest.fixture(scope="module")
def expected(crowded):
    return exact(Engine(crowded.model, CROWDED), samples_of(crowded))


def test_a_row_alone_has_the_numbers_it_has_among_others(crowded, expected) -> None:
    alone = {}
    for sample in samples_of(crowded):
        alone |= exact(Engine(crowded.model, CROWDED), [sample])
    assert alone == expected


@pytest.mark.parametrize("seed", [1, 2])
def test_permuted_rows_have_the_same_numbers(crowded, expected, seed) -> None:
    samples = samples_of(crowded)
    random.Random(seed).shuffle(samples)
    assert exact(Engine(crowded.model, CROWDED), samples) == expected


@pytest.mark.parametrize("look_ahead", [1, 3])
def test_rows_grouped_otherwise_have_the_same_numbers(crowded, expected, look_ahead) -> None:
    assert exact(Engine(crowded.model, replace(CROWDED, look_ahead=look_ahead)), samples_of(crowded)) == expected


def test_rows_among_others_of_other_lengths_have_the_same_numbers(crowded, expected) -> None:
    others = [
        crowded.sample(Question(id=f"other-{i}", images=(picture((40 + 37 * i, 200), i),), max_new_tokens=(1 + 5 * i,)))
        for i in range(6)
    ]
    mixed = others[:3] + samples_of(crowded) + others[3:]
    random.Random(3).shuffle(mixed)
    found = exact(Engine(crowded.model, CROWDED), mixed)
    assert {key: found[key] for key in expected} == expected


def test_rows_of_several_threads_have_the_same_numbers(crowded, expected) -> None:
    engine, samples = Engine(crowded.model, CROWDED), samples_of(crowded)
    with ThreadPoolExecutor(4) as threads:
        parts = list(threads.map(lambda i: exact(engine, samples[i::4]), range(4)))
    assert {key: value for part in parts for key, value in part.items()} == expected


def test_a_longer_row_in_another_slot_changes_no_number(crowded) -> None:
    """Decoding reads further into all slots for it, by whole blocks of the kernel."""
    settings = replace(CROWDED, slots=2, capacity=1024)
    short = crowded.sample(Question(id="short", max_new_tokens=(40,)))
    long = crowded.sample(Question(id="long", texts=("Why? " * 110,), max_new_tokens=(60,)))
    alone = exact(Engine(crowded.model, settings), [short])
    assert exact(Engine(crowded.model, settings), [long, short])["short", "p0"] == alone["short", "p0"]


def test_sampled_rows_have_the_same_numbers_too(crowded) -> None:
    sampling = Sampling(temperature=0.9, top_p=0.95, repetition_penalty=1.1, seed=4)
    settings, samples = replace(CROWDED, sampling=sampling), samples_of(crowded)
    assert exact(Engine(crowded.model, settings), samples[::-1]) == exact(Engine(crowded.model, settings), samples)
