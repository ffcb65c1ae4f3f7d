"""Keys and values in 8 bits: rounded by token and head, the same in any batch, and close to what they stand for."""

import random
from dataclasses import replace

import pytest
import torch

from benchmarks.random_model import SHAPES, full_config
from pipeline.engine.engine import Engine
from pipeline.engine.kernels.pages import PAGE
from pipeline.engine.kernels.stored import Stored, empty_cache, quantise_tokens
from pipeline.engine.network.load import load_model
from pipeline.engine.network.memory import memory_of
from schemas.engine import EngineSettings
from tests.engine import prefixes
from tests.engine.oracle import Oracle, Question, mixed_questions
from tests.engine.prefixes import TEXTS, exact
from tests.tiny import checkpoint

CPU = torch.device("cpu")
PLAIN = EngineSettings(slots=5, prefill_tokens=1024, bucket=16, tiles_per_call=8, look_ahead=64)
INT8 = replace(PLAIN, kv_cache_dtype="int8")


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def asked(request) -> Oracle:
    settings = replace(INT8, dtype=request.param)
    return Oracle(load_model(str(checkpoint("mistral")), settings), str(checkpoint("mistral")))


def samples_of(oracle: Oracle):
    """Rows of one prompt and of three: some attend to what others of their image wrote, some have a prefix."""
    questions = mixed_questions(max_new_tokens=(9,))
    questions += [replace(q, id=f"{q.id}-thrice", texts=TEXTS) for q in questions[:4]]
    alone = [oracle.sample(question) for question in [*questions, Question(id="lone", texts=("Why? " * 40,))]]
    return alone + [replace(one, id=f"{one.id}-behind") for one in prefixes.mixed_samples(oracle, max_new_tokens=(5,))]


def test_a_number_is_at_most_half_a_step_from_what_it_stands_for() -> None:
    x = torch.randn(50, 3, 64) * torch.logspace(-6, 6, 50)[:, None, None]
    numbers, scales = quantise_tokens(x)
    assert numbers.dtype == torch.int8
    assert numbers.abs().amax(-1).unique().tolist() == [127]
    assert ((numbers * scales[..., None] - x).abs() <= scales[..., None] * 0.5001).all()


def test_zeros_stay_zeros() -> None:
    numbers, scales = quantise_tokens(torch.zeros(2, 8))
    assert not numbers.any()
    assert scales.isfinite().all()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_token_that_is_not_finite_is_read_as_no_number(value) -> None:
    x = torch.ones(1, 3, 8)
    x[0, 1, 5] = value
    cache = empty_cache((1, 4, 8), torch.float32, CPU, int8=True)
    cache.put(torch.tensor([3, 0, 1]), cache.pack(x))
    assert cache.read(torch.float32).isnan().all(-1).tolist() == [[True, False, False, False]]


def test_entries_are_copied_as_they_are() -> None:
    cache = empty_cache((2, 6, 8), torch.bfloat16, CPU, int8=True)
    cache.put(torch.arange(6), cache.pack(torch.randn(2, 6, 8)))
    before = cache.read(torch.bfloat16).clone()
    cache.put(torch.tensor([4, 5]), cache.take(torch.tensor([1, 0])))
    after = cache.read(torch.bfloat16)
    assert torch.equal(after[:, [4, 5]], before[:, [1, 0]])
    assert torch.equal(after[:, :4], before[:, :4])


def test_pages_are_zeroed_with_their_scales_and_no_others() -> None:
    cache = empty_cache((2, 4 * PAGE, 8), torch.bfloat16, CPU, int8=True)
    cache.put(torch.arange(4 * PAGE), cache.pack(torch.randn(2, 4 * PAGE, 8)))
    cache.zero(torch.tensor([3, 1]))
    for held in (cache.numbers, cache.scales):
        assert (
            held.unflatten(1, (4, PAGE)).flatten(2).count_nonzero(2).bool().tolist() == [[True, False, True, False]] * 2
        )


def test_numbers_of_the_networks_type_are_kept_as_they_are() -> None:
    x = torch.randn(2, 3, 8)
    assert torch.equal(Stored(numbers=torch.zeros(2, 3, 8)).pack(x).read(torch.float32), x)


@pytest.mark.parametrize("seed", [1, 2])
def test_a_row_has_the_same_numbers_in_any_batch(asked, seed) -> None:
    samples = samples_of(asked)
    expected = exact(Engine(asked.model, INT8), samples)
    random.Random(seed).shuffle(samples)
    assert exact(Engine(asked.model, replace(INT8, look_ahead=3)), samples) == expected
    few = samples[::6]
    assert {key: expected[key] for key in exact(Engine(asked.model, INT8), few)} == exact(
        Engine(asked.model, INT8), few
    )


def test_in_pages_that_others_have_had_nothing_changes(asked) -> None:
    tight = Engine(asked.model, replace(INT8, pages=22))
    samples = samples_of(asked)
    expected = exact(Engine(asked.model, INT8), samples)
    assert exact(tight, samples) == expected
    assert exact(tight, samples[::-1]) == expected


def test_answers_are_close_to_those_of_the_whole_numbers_and_not_equal(asked) -> None:
    samples = [asked.sample(q) for q in mixed_questions(max_new_tokens=(1,))]
    found, expected = (
        [a.mean_logprob for a in Engine(asked.model, settings).generate(samples)] for settings in (INT8, PLAIN)
    )
    assert found == pytest.approx(expected, abs=0.05)
    assert found != expected


def test_a_row_takes_little_more_than_half_of_the_memory() -> None:
    shape = SHAPES["mistral-7b"]
    assert shape is not None
    half, whole = (
        memory_of(full_config(shape()), EngineSettings(device="cuda", kv_cache_dtype=one)).sequence
        for one in ("int8", None)
    )
    assert half / whole == pytest.approx((128 + 4) / 256)
