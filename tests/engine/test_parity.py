"""Greedy answers are transformers' own, token for token, whatever the batch."""

import random
from dataclasses import replace

import pytest

from pipeline.engine.network.load import load_model
from tests.engine.oracle import FP32, Oracle, Question, mixed_questions, picture
from tests.tiny import checkpoint


def texts(engine, oracle, questions) -> list[str]:
    return [answer.text for answer in engine.generate(oracle.sample(q) for q in questions)]


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_a_mixed_batch_gives_the_tokens_of_one_image_generate(each_oracle, batch_size):
    questions = mixed_questions()
    engine = each_oracle.engine(replace(FP32, batch_size=batch_size))
    assert texts(engine, each_oracle, questions) == [each_oracle.spelled(q) for q in questions]


def test_several_prompts_about_one_image_get_the_tokens_each_gets_alone(each_oracle):
    question = Question(id="a", images=(picture((100, 80)),), texts=("What?", "Where is it?", "How many are there?"))
    answers = list(each_oracle.engine().generate([each_oracle.sample(question)]))
    assert [a.text for a in answers] == [each_oracle.spelled(question, i) for i in range(3)]
    assert [a.prompt_id for a in answers] == ["p0", "p1", "p2"]


def test_a_row_of_several_images_beside_one_without_any(each_oracle):
    questions = [
        Question(id="two", images=(picture((100, 80)), picture((40, 200), 1))),
        Question(id="none"),
        Question(id="three", images=tuple(picture((60, 60 + 50 * i), i) for i in range(3))),
    ]
    assert texts(each_oracle.engine(), each_oracle, questions) == [each_oracle.spelled(q) for q in questions]


def test_rows_without_images_make_a_batch_of_their_own(oracle):
    questions = [Question(id=str(i), texts=("Why? " * (i + 1),)) for i in range(3)]
    assert texts(oracle.engine(), oracle, questions) == [oracle.spelled(q) for q in questions]


def test_the_tests_model_looks_at_its_picture(each_oracle):
    one, other = (Question(id="a", images=(picture((100, 80), seed),)) for seed in (0, 1))
    assert each_oracle.spelled(one) != each_oracle.spelled(other)


def test_permuted_rows_give_the_same_answers(oracle):
    questions = mixed_questions()
    shuffled = random.Random(0).sample(questions, len(questions))
    engine = oracle.engine(replace(FP32, batch_size=3))
    answers = {a.id: a.text for a in engine.generate(oracle.sample(q) for q in questions)}
    assert {a.id: a.text for a in engine.generate(oracle.sample(q) for q in shuffled)} == answers


def test_image_features_split_over_several_calls_are_the_same(oracle):
    questions = mixed_questions()
    engine = oracle.engine(replace(FP32, tiles_per_call=1))
    assert texts(engine, oracle, questions) == [oracle.spelled(q) for q in questions]


@pytest.mark.parametrize("penalty", [1.5, 0.7])
def test_the_repetition_penalty_counts_the_prompt_as_transformers_does(oracle, penalty):
    questions = mixed_questions()
    engine = oracle.engine(repetition_penalty=penalty)
    expected = [oracle.spelled(q, repetition_penalty=penalty) for q in questions]
    assert texts(engine, oracle, questions) == expected != [oracle.spelled(q) for q in questions]


def test_eager_attention_gives_the_same_answers(oracle):
    questions = mixed_questions()
    eager = Oracle(load_model(str(checkpoint()), replace(FP32, attention="eager")), str(checkpoint()))
    assert texts(eager.engine(), oracle, questions) == [oracle.spelled(q) for q in questions]


def test_the_mean_logprob_is_that_of_one_pass_over_the_answer(each_oracle):
    questions = mixed_questions()
    answers = each_oracle.engine().generate(each_oracle.sample(q) for q in questions)
    for question, answer in zip(questions, answers, strict=True):
        expected = each_oracle.logprob(question, each_oracle.token_ids(question))
        assert answer.mean_logprob == pytest.approx(expected, abs=1e-4)
