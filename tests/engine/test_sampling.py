"""Tokens sampled at random follow from the row's own seed, within the temperature, top-k and top-p of the job."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from pipeline.engine.sampling import Sampler, SamplingState, noise, pick, sequence_seed
from schemas.engine import Sampling
from tests.engine.oracle import FP32, Question, mixed_questions, picture


def spelled(engine, oracle, questions) -> dict[str, str]:
    return {a.id: a.text for a in engine.generate(oracle.sample(q) for q in questions)}


def allowed(logits: list[float], num_rows: int = 400, **settings) -> set[int]:
    """The tokens that many rows draw from the same logits."""
    state = SamplingState(seeds=torch.arange(num_rows), steps=torch.zeros(num_rows, dtype=torch.int64), seen=None)
    sampler = Sampler(Sampling(**settings), len(logits), torch.tensor([0]))
    return set(sampler.sample(torch.tensor([logits] * num_rows), state).token_ids.tolist())


def test_a_sampled_answer_does_not_depend_on_its_batch(oracle):
    questions = mixed_questions()
    settings = {"temperature": 1.0, "top_p": 0.9, "top_k": 50, "seed": 3}
    together = spelled(oracle.engine(**settings), oracle, questions)
    assert spelled(oracle.engine(replace(FP32, batch_size=1), **settings), oracle, questions[::-1]) == together


def test_another_seed_gives_another_answer(oracle):
    questions = mixed_questions()
    one, other = (spelled(oracle.engine(temperature=1.0, seed=seed), oracle, questions) for seed in (1, 2))
    assert all(one[q.id] != other[q.id] for q in questions)


def test_the_prompts_of_one_sample_are_sampled_by_themselves(oracle):
    question = Question(id="a", images=(picture((100, 80)),), texts=("What?", "What?"))
    first, second = oracle.engine(temperature=1.0).generate([oracle.sample(question)])
    assert first.text != second.text


@pytest.mark.parametrize("temperature", [1e-6, 1e-300])
def test_a_temperature_near_zero_is_greedy(oracle, temperature):
    questions = mixed_questions()
    assert spelled(oracle.engine(temperature=temperature), oracle, questions) == spelled(
        oracle.engine(), oracle, questions
    )


@pytest.mark.parametrize(
    ("settings", "tokens"),
    [
        pytest.param({"temperature": 1.0}, {0, 1, 2, 3}, id="every token"),
        pytest.param({"temperature": 1.0, "top_k": 2}, {1, 3}, id="top-k"),
        pytest.param({"temperature": 1.0, "top_k": 9}, {0, 1, 2, 3}, id="top-k above the vocabulary"),
        pytest.param({"temperature": 1.0, "top_p": 0.45}, {1}, id="top-p keeps one token at least"),
        pytest.param({"temperature": 1.0, "top_p": 0.7}, {1, 3}, id="top-p keeps the token that reaches it"),
        pytest.param({"temperature": 1.0, "top_k": 3, "top_p": 0.8}, {1, 3}, id="top-p of what top-k left"),
        pytest.param({}, {1}, id="greedy"),
    ],
)
def test_only_allowed_tokens_are_sampled(settings, tokens):
    assert allowed(np.log([0.1, 0.5, 0.11, 0.29]).tolist(), **settings) == tokens


def test_tokens_are_sampled_as_often_as_they_are_likely():
    share = torch.tensor([0.1, 0.5, 0.0, 0.4])
    noise = torch.rand(100_000, generator=torch.Generator().manual_seed(0))
    drawn = pick(share.expand(len(noise), 4), noise).bincount(minlength=4) / len(noise)
    assert drawn.tolist() == pytest.approx(share.tolist(), abs=0.01)


def test_noise_at_either_end_never_draws_an_impossible_token():
    probabilities = torch.tensor([[0.0, 0.3, 0.7, 0.0]] * 2)
    assert pick(probabilities, torch.tensor([0.0, 1 - 2**-24])).tolist() == [1, 2]


def test_noise_is_even_and_follows_from_seed_and_step_alone():
    seeds = torch.tensor([sequence_seed(0, str(i), "p") for i in range(1000)])
    drawn = torch.stack([noise(seeds, torch.full_like(seeds, step)) for step in range(50)])
    assert 0 <= drawn.min() < 0.001 < 0.999 < drawn.max() < 1
    assert drawn.mean().item() == pytest.approx(0.5, abs=0.005)
    assert abs(np.corrcoef(drawn[0], drawn[1])[0, 1]) < 0.1
    assert abs(np.corrcoef(drawn[:-1].flatten(), drawn[1:].flatten())[0, 1]) < 0.02
    assert torch.equal(noise(seeds[5:6], torch.tensor([7])), drawn[7, 5:6])


def test_noise_is_that_of_splitmix64():
    first = [16294208416658607535, 7960286522194355700, 487617019471545679]  # of the generator with seed 0
    assert noise(torch.zeros(3, dtype=torch.int64), torch.arange(3)).tolist() == [(x >> 32) / 2**32 for x in first]


def test_rows_of_the_embedding_table_above_the_tokenizer_are_never_sampled(oracle):
    question = mixed_questions()[0]
    best = oracle.token_ids(question)[0]
    narrow = type(oracle)(replace(oracle.with_text, num_tokens=best), str(oracle.processor.tokenizer.name_or_path))
    (answer,) = narrow.engine().generate([oracle.sample(question)])
    assert max(int(token) for token in answer.text.split()) < best


def test_a_rows_seed_follows_from_all_three_names():
    seeds = {
        sequence_seed(*names) for names in [(0, "a", "b"), (1, "a", "b"), (0, "ab", ""), (0, "a", "c"), (0, "b", "b")]
    }
    assert len(seeds) == 5
