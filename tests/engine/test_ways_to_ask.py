"""Ways to ask: several answers, a beginning, log-probabilities, forbidden words; the same in any company."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from pipeline.engine.engine import Engine
from schemas.engine import EngineSettings, Sampling
from schemas.form import Form
from schemas.sample import Sample
from tests.engine.oracle import FP32, Oracle, Question, mixed_questions

CROWDED = EngineSettings(dtype="float32", slots=6, prefill_tokens=1024, bucket=32, tiles_per_call=8, look_ahead=64)


def draws(sample: Sample, num: int) -> Sample:
    """The sample, its prompt asked so many times."""
    (prompt,) = sample.prompts
    return replace(sample, prompts=(prompt, *(replace(prompt, id=f"{prompt.id}.{n}") for n in range(2, num + 1))))


def answers(oracle: Oracle, samples: list[Sample], **sampling: object):
    engine = Engine(oracle.with_text, replace(CROWDED, sampling=Sampling(**sampling)))
    found = {(one.id, one.prompt_id): (one.text, one.mean_logprob, one.steps) for one in engine.generate(samples)}
    return found, engine.statistics()


def test_several_answers_differ_cost_one_prefill_and_the_first_is_the_only_one_s(oracle: Oracle) -> None:
    samples = [oracle.sample(question) for question in mixed_questions()[:4]]
    warm = {"temperature": 1.5, "seed": 7}
    several, statistics = answers(oracle, [draws(sample, 5) for sample in samples], **warm)
    one, alone = answers(oracle, samples, **warm)
    assert {key[1] for key in several} == {"p0", "p0.2", "p0.3", "p0.4", "p0.5"}
    assert len({found[0] for found in several.values()}) == len(several) == 20
    assert {key: several[key][0] for key in one} == {key: found[0] for key, found in one.items()}
    assert statistics.num_prefilled_tokens == alone.num_prefilled_tokens + 4 * 4
    again, _ = answers(oracle, [draws(sample, 5) for sample in reversed(samples)], **warm)
    assert again == several


def test_an_answer_goes_on_from_its_beginning_as_transformers_does(oracle: Oracle) -> None:
    question = Question(id="a", max_new_tokens=(8,))
    plain = oracle.sample(question)
    begun = oracle.processor.tokenizer.encode("It is", add_special_tokens=False)
    ids = np.concatenate([plain.prompts[0].token_ids, np.array(begun, np.int32)])
    prompt = replace(plain.prompts[0], token_ids=ids, answer_prefix="It is", num_prefix=len(begun))
    with torch.inference_mode():
        wanted = oracle.model.network.generate(
            input_ids=torch.tensor(ids[None].astype(np.int64)), max_new_tokens=8, do_sample=False
        )[0, len(ids) :].tolist()
    (answer,) = Engine(oracle.with_text, FP32).generate([replace(plain, prompts=(prompt,))])
    rest = oracle.processor.tokenizer.decode([*begun, *wanted], skip_special_tokens=True).removeprefix("It is")
    assert answer.text == "It is" + rest
    assert answer.num_generated_tokens == 8


def test_log_probabilities_are_those_of_the_models_own_distribution(oracle: Oracle) -> None:
    question = Question(id="a", max_new_tokens=(6,))
    (found,) = answers(oracle, [oracle.sample(question)], logprobs=3, repetition_penalty=1.3)[0].values()
    _, mean, steps = found
    assert steps is not None
    inputs = oracle.inputs(question, question.texts[0])
    drawn = [step.drawn.token_id for step in steps]
    ids = torch.cat([inputs["input_ids"], torch.tensor([drawn])], dim=1)
    with torch.inference_mode():
        network = oracle.model.network(input_ids=ids, attention_mask=torch.ones_like(ids))
    wanted = network.logits[0, -len(drawn) - 1 : -1].log_softmax(-1)
    for step, row in zip(steps, wanted, strict=True):
        best = row.topk(3)
        assert [one.token_id for one in step.top] == best.indices.tolist()
        assert [one.logprob for one in step.top] == pytest.approx(best.values.tolist(), abs=1e-4)
        assert step.drawn.logprob == pytest.approx(row[step.drawn.token_id].item(), abs=1e-4)
    assert sum(step.drawn.logprob for step in steps) / len(steps) == pytest.approx(mean)


def test_asking_for_log_probabilities_changes_no_other_number(oracle: Oracle) -> None:
    samples = [oracle.sample(question) for question in mixed_questions()]
    told, _ = answers(oracle, samples, logprobs=2)
    alone, _ = answers(oracle, samples[3:4], logprobs=2)
    plain, _ = answers(oracle, samples)
    assert {key: found[:2] for key, found in told.items()} == {key: found[:2] for key, found in plain.items()}
    assert alone.items() <= told.items()
    none, _ = answers(oracle, samples[:1], logprobs=0)
    assert all(step.top == () for found in none.values() for step in found[2] or ())


def test_forbidden_words_are_in_no_answer_and_others_are_as_they_were(oracle: Oracle) -> None:
    samples = [oracle.sample(question) for question in mixed_questions(max_new_tokens=(30,))]
    settings = replace(CROWDED, sampling=Sampling(form=Form(kind="bad_words", text='["k", "s;", "!!!"]')))
    found = {one.id: one.text or "" for one in Engine(oracle.with_text, settings).generate(samples)}
    assert not any(word in text for text in found.values() for word in ("k", "s;", "!!!"))
    plain = {one.id: one.text or "" for one in Engine(oracle.with_text, CROWDED).generate(samples)}
    assert any("k" in text for text in plain.values())
    harmless = Sampling(form=Form(kind="bad_words", text='["\\u0416\\u0416"]'), temperature=0.0)
    same = Engine(oracle.with_text, replace(CROWDED, sampling=harmless)).generate(samples)
    whole = {id: text for id, text in plain.items() if "\ufffd" not in text}
    assert {one.id: one.text for one in same if one.id in whole} == whole
