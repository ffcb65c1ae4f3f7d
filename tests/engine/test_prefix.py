"""What a job's prompts all begin with is run once: no answer shows it, in any batch."""

import random
from dataclasses import replace

import pytest
import torch

from pipeline.engine.engine import Engine
from pipeline.engine.model_runner import _MAX_PREFIXES
from pipeline.engine.network.load import load_model
from schemas.engine import BLOCK, EngineSettings, Sampling
from tests.engine.oracle import FP32, Oracle, Question, mixed_questions
from tests.engine.prefixes import SYSTEM, behind, exact, mixed_samples, unshared
from tests.tiny import checkpoint

CROWDED = EngineSettings(slots=5, prefill_tokens=1024, bucket=32, tiles_per_call=8, look_ahead=64)
WAYS = [
    pytest.param(CROWDED, id="crowded"),
    pytest.param(replace(CROWDED, bucket=BLOCK), id="smallest steps"),
    pytest.param(EngineSettings(slots=3), id="one by one"),
]


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def dtype(request) -> str:
    return request.param


@pytest.fixture(scope="module", params=["llama", "mistral", "qwen2"])
def each(request, dtype) -> Oracle:
    """The oracle of every backbone in either precision."""
    folder = str(checkpoint(request.param))
    return Oracle(load_model(folder, replace(CROWDED, dtype=dtype)), folder)


@pytest.fixture(scope="module")
def crowded(dtype) -> Oracle:
    folder = str(checkpoint("llama"))
    return Oracle(load_model(folder, replace(CROWDED, dtype=dtype)), folder)


@pytest.mark.parametrize("settings", WAYS)
def test_a_prefix_that_is_run_once_changes_no_bit_of_an_answer(each, settings) -> None:
    samples = mixed_samples(each)
    sharing, plain = Engine(each.model, settings), Engine(each.model, settings)
    assert exact(sharing, samples) == exact(plain, unshared(samples))
    found, without = sharing.statistics(), plain.statistics()
    assert (found.num_prefix_tokens, without.num_prefix_tokens) == (13 * 64, 0)  # of 13 groups the whole blocks
    assert found.num_prefilled_tokens == without.num_prefilled_tokens - 12 * 64


def test_a_row_alone_has_the_numbers_it_has_among_others(crowded) -> None:
    samples, alone = mixed_samples(crowded), {}
    expected = exact(Engine(crowded.model, CROWDED), samples)
    random.Random(5).shuffle(samples)
    assert exact(Engine(crowded.model, CROWDED), samples) == expected
    for sample in samples:
        alone |= exact(Engine(crowded.model, CROWDED), [sample])
    assert alone == expected


def test_sampled_rows_have_the_same_numbers_too(oracle) -> None:
    sampling = Sampling(temperature=0.9, top_p=0.95, repetition_penalty=1.1, seed=4)
    settings, samples = replace(CROWDED, sampling=sampling), mixed_samples(oracle)
    assert exact(Engine(oracle.model, settings), samples) == exact(Engine(oracle.model, settings), unshared(samples))


def test_retries_begin_with_the_prefix_too(oracle) -> None:
    questions = mixed_questions(max_new_tokens=(480,))
    samples = [behind("Why? " * 8, oracle, oracle.sample(question)) for question in questions]
    settings = replace(CROWDED, slots=8, sampling=Sampling(cut_repetition=True, repetition_penalty=0.5))
    sharing, plain = Engine(oracle.model, settings), Engine(oracle.model, settings)
    assert list(sharing.generate(samples)) == list(plain.generate(unshared(samples)))
    found = sharing.statistics()
    assert found.num_retries == plain.statistics().num_retries > 0
    assert found.num_prefix_tokens == 32 * (len(samples) + found.num_retries)


def test_over_two_devices_no_bit_changes(oracle) -> None:
    settings = replace(CROWDED, dtype="float32", num_devices=2)
    two = Oracle(load_model(str(checkpoint("llama")), settings), str(checkpoint("llama")))
    samples = mixed_samples(oracle)
    assert exact(Engine(two.model, settings), samples) == exact(Engine(oracle.model, CROWDED), unshared(samples))


def test_jobs_with_prefixes_of_their_own_share_an_engine(oracle) -> None:
    """More of them than are kept: those that are gone are run again, to the same numbers."""
    texts = [f"{number} {SYSTEM}" for number in range(_MAX_PREFIXES + 2)]
    questions = mixed_questions()
    samples = [
        behind(text, oracle, oracle.sample(replace(questions[i % len(questions)], id=f"{time}-{i}")))
        for time in range(2)
        for i, text in enumerate(texts)
    ]
    engine, order = Engine(oracle.model, CROWDED), random.Random(1).sample(samples, len(samples))
    assert exact(engine, order) == exact(Engine(oracle.model, CROWDED), unshared(samples))
    assert engine.statistics().num_prefix_tokens == 64 * len(samples)


def test_a_prefix_that_is_too_short_is_not_shared(oracle) -> None:
    sample = behind("Answer briefly, please. ", oracle, oracle.sample(mixed_questions()[0]))
    assert sample.prompts[0].num_common < 32
    engine = Engine(oracle.model, CROWDED)
    exact(engine, [sample])
    assert engine.statistics().num_prefix_tokens == 0


def test_an_answer_gets_what_prefix_and_prompt_leave_of_a_slot(oracle) -> None:
    sample = behind(SYSTEM, oracle, oracle.sample(Question(id="a", max_new_tokens=(500,))))
    length = len(sample.prompts[0].token_ids)
    settings = replace(CROWDED, capacity=128, prefill_tokens=None, bucket=BLOCK, sampling=Sampling(ignore_eos=True))
    (answer,) = Engine(oracle.model, settings).generate([sample])
    assert (answer.num_prompt_tokens, answer.num_generated_tokens) == (length, 128 - length)
    (plain,) = Engine(oracle.model, settings).generate(unshared([sample]))
    assert answer == plain


def test_a_row_behind_a_prefix_that_fits_no_slot_becomes_an_error_row(oracle) -> None:
    sample = behind(SYSTEM, oracle, oracle.sample(Question(id="a", texts=("Why? " * 12,))))
    (answer,) = Engine(oracle.model, replace(CROWDED, capacity=96)).generate([sample])
    assert (answer.status, answer.error_type) == ("error", "TooLong")


def test_a_slot_that_overflowed_has_the_prefix_again_for_its_next_row(oracle) -> None:
    calls = []

    def spoil(module, inputs, output):
        calls.append(len(output))
        return output * torch.nan if len(calls) == 2 else output  # the first is the prefix, the second the first row

    samples = [behind(SYSTEM, oracle, oracle.sample(Question(id=str(i), max_new_tokens=(5,)))) for i in range(2)]
    engine = Engine(oracle.model, replace(FP32, slots=1, capacity=512))
    handle = oracle.model.decoder.blocks[0].before_attention.register_forward_hook(spoil)
    first, second = engine.generate(samples)
    handle.remove()
    (expected,) = Engine(oracle.model, replace(FP32, slots=1, capacity=512)).generate(unshared(samples[1:]))
    assert (first.error_type, second) == ("NotFinite", expected)
    assert calls[:2] == [64, 32]


def test_a_prefix_too_large_for_the_memory_loses_no_row(oracle) -> None:
    """What runs first in the engine is the prefix, padded to a whole prefill."""
    asked = []

    def check(module, inputs):
        asked.append(len(inputs[0]))
        if len(inputs[0]) > 500:
            raise torch.OutOfMemoryError("tried to allocate 9 GiB")

    samples = mixed_samples(oracle)
    engine = Engine(oracle.model, CROWDED)
    handle = oracle.model.decoder.blocks[0].before_attention.register_forward_pre_hook(check)
    answers = exact(engine, samples)
    handle.remove()
    plain = exact(Engine(oracle.model, CROWDED), unshared(samples))
    assert {key: text for key, (text, _) in answers.items()} == {key: text for key, (text, _) in plain.items()}
    assert engine.statistics().num_out_of_memory == sum(n > 500 for n in asked) > 0
