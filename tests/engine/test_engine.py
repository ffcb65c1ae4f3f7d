"""What holds for every answer, greedy or not: order, ends, counts, failures, threads, memory."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.engine.engine import Engine
from schemas.engine import EngineSettings
from schemas.errors import Failure
from schemas.sample import Prompt, Sample
from tests.engine.oracle import FP32, Oracle, Question, mixed_questions, picture
from tests.tiny import checkpoint

ROOT = Path(__file__).parents[2]
BROKEN = Failure(stage="decode", type="Truncated", message="the picture ends early")
UNFINISHED = """
from pipeline.engine.engine import Engine
from pipeline.engine.network.load import load_model
from tests.engine.oracle import FP32, Oracle, Question
from tests.tiny import checkpoint

oracle = Oracle(load_model(str(checkpoint()), FP32), str(checkpoint()))
questions = [Question(id=str(i), max_new_tokens=(400 if i else 1,)) for i in range(8)]
answers = Engine(oracle.model, FP32).generate(map(oracle.sample, questions))
print(next(iter(answers)).status)
"""


def test_answers_come_in_the_order_of_samples_and_their_prompts(oracle):
    questions = mixed_questions()
    questions = [replace(q, texts=("What?", "A much longer question about it?")) for q in questions]
    engine = oracle.engine(replace(FP32, batch_size=3, look_ahead=4))
    answers = list(engine.generate(oracle.sample(q) for q in questions))
    assert [(a.id, a.prompt_id) for a in answers] == [(q.id, p) for q in questions for p in ("p0", "p1")]


def test_a_window_is_answered_before_the_next_is_read(oracle):
    read = []

    def samples():
        for question in mixed_questions(max_new_tokens=(1,)):
            read.append(question.id)
            yield oracle.sample(question)

    next(oracle.engine(replace(FP32, look_ahead=2)).generate(samples()))
    assert len(read) == 2


class NotedSteps:
    """Notes what it is told, each run of equal words once."""

    def __init__(self):
        self.told = []

    def begin(self):
        self.note("step")

    def rest(self):
        self.note("rest")

    def note(self, word):
        if self.told[-1:] != [word]:
            self.told.append(word)


def test_a_watch_hears_of_steps_and_of_every_rest(oracle):
    engine, watch = Engine(oracle.with_text, FP32), NotedSteps()
    engine.watch_steps(watch)
    questions = mixed_questions(max_new_tokens=(3,))[:2]
    assert len(list(engine.generate([oracle.sample(questions[0])]))) == 1
    engine.set_sampling(replace(FP32.sampling, seed=1))  # with a loop of its own
    assert len(list(engine.generate([oracle.sample(questions[1])]))) == 1
    engine.close()
    assert watch.told[watch.told.index("step") :] == ["step", "rest"] * 2  # it may rest before it is given anything


def test_a_failed_prompt_passes_through_beside_an_answered_one(oracle):
    good = oracle.sample(Question(id="a", images=(picture((100, 80)),)))
    failed = Prompt(id="bad", text="?", failure=BROKEN)
    answers = list(oracle.engine().generate([replace(good, prompts=(failed, *good.prompts))]))
    assert [(a.prompt_id, a.status, a.error_stage, a.error_type) for a in answers] == [
        ("bad", "error", "decode", "Truncated"),
        ("p0", "ok", None, None),
    ]


def test_a_window_of_failures_needs_no_model_run(oracle):
    sample = Sample(id="a", prompts=(Prompt(id="bad", text="?", failure=BROKEN),))
    assert [a.error_message for a in oracle.engine().generate([sample, sample])] == [BROKEN.message] * 2


def test_no_samples_give_no_answers(oracle):
    assert list(oracle.engine().generate([])) == []


def test_every_row_ends_at_its_own_limit(oracle):
    limits = (1, 5, 12, 3, 9, 2, 7)
    questions = [replace(q, max_new_tokens=(n,)) for q, n in zip(mixed_questions(), limits, strict=True)]
    answers = list(oracle.engine().generate(oracle.sample(q) for q in questions))
    assert [a.num_generated_tokens for a in answers] == list(limits)
    assert [a.text for a in answers] == [oracle.spelled(q) for q in questions]
    assert {a.finish_reason for a in answers} == {"length"}


def test_any_of_several_end_tokens_stops_a_row_and_is_no_part_of_its_text(oracle):
    questions = mixed_questions()
    unended = [oracle.token_ids(q) for q in questions]
    stops = (*oracle.model.stop_ids, unended[0][3], unended[1][5])
    answers = list(Engine(replace(oracle.model, stop_ids=stops), FP32).generate(oracle.sample(q) for q in questions))
    for question, answer in zip(questions, answers, strict=True):
        expected = oracle.token_ids(question, eos_token_id=list(stops), pad_token_id=0)
        assert answer.num_generated_tokens == len(expected)
        assert answer.finish_reason == ("stop" if expected[-1] in stops else "length")
        assert answer.text == " ".join(str(i) for i in expected if i not in stops)


def test_nothing_ends_a_row_before_min_new_tokens(oracle):
    questions = mixed_questions()
    stops = (*oracle.model.stop_ids, *(oracle.token_ids(q)[1] for q in questions))
    engine = Oracle(replace(oracle.with_text, stop_ids=stops), str(checkpoint())).engine(min_new_tokens=6)
    answers = engine.generate(oracle.sample(q) for q in questions)
    for question, answer in zip(questions, answers, strict=True):
        expected = oracle.token_ids(question, eos_token_id=list(stops), pad_token_id=0, min_new_tokens=6)
        assert answer.num_generated_tokens == len(expected) >= 6


def test_counts_and_sizes_stand_in_the_answer(oracle):
    sample = oracle.sample(Question(id="a", images=(picture((100, 80)), picture((40, 200)))))
    (answer,) = oracle.engine().generate([sample])
    assert (answer.image_width, answer.image_height, answer.num_tiles) == (100, 80, sample.tiles_per_image[0])
    assert answer.num_prompt_tokens == len(sample.prompts[0].token_ids)
    assert answer.num_image_tokens == sample.prompts[0].num_image_tokens > 0


def test_a_row_whose_tokens_and_tiles_disagree_is_our_bug(oracle):
    sample = oracle.sample(Question(id="a", images=(picture((100, 80)),)))
    short = replace(sample.prompts[0], token_ids=np.delete(sample.prompts[0].token_ids, 5))
    with pytest.raises(AssertionError):
        list(oracle.engine().generate([replace(sample, prompts=(short,))]))


def test_two_threads_at_once_get_their_own_answers(oracle):
    questions = mixed_questions()
    engine = oracle.engine(replace(FP32, batch_size=2))

    def ask(some):
        return [a.text for a in engine.generate(oracle.sample(q) for q in some)]

    with ThreadPoolExecutor(2) as threads:
        forth, back = threads.map(ask, [questions, questions[::-1]])
    assert forth == back[::-1] == [oracle.spelled(q) for q in questions]


def test_a_closed_engine_says_so(oracle):
    engine = oracle.engine()
    engine.close()
    with pytest.raises(RuntimeError, match="closed"):
        list(engine.generate([oracle.sample(Question(id="a"))]))


@contextmanager
def memory_for(oracle, num_tokens: int):
    """Let the network run out of memory above so many tokens at once; gives the sizes that it was asked for."""
    asked = []

    def check(module, inputs):
        asked.append(len(inputs[0]))
        if len(inputs[0]) > num_tokens:
            raise torch.OutOfMemoryError("tried to allocate 9 GiB")

    handle = oracle.model.decoder.blocks[0].before_attention.register_forward_pre_hook(check)
    yield asked
    handle.remove()


def test_a_prefill_too_large_for_the_memory_is_made_smaller_and_loses_no_row(oracle):
    questions = mixed_questions()
    engine = oracle.engine(replace(FP32, prefill_tokens=2000))
    with memory_for(oracle, 500) as asked:
        answers = list(engine.generate(oracle.sample(q) for q in questions))
    assert [a.text for a in answers] == [oracle.spelled(q) for q in questions]
    assert max(asked) > 500
    assert engine.statistics().num_out_of_memory == sum(n > 500 for n in asked) > 0


def test_a_row_too_large_for_the_memory_becomes_an_error_row_and_the_others_are_answered(oracle):
    small, large = Question(id="small", images=(picture((33, 500)),)), Question(id="large", texts=("Why? " * 60,))
    with memory_for(oracle, 250):
        answers = list(oracle.engine().generate([oracle.sample(large), oracle.sample(small)]))
    assert [(a.status, a.error_stage, a.error_type) for a in answers] == [
        ("error", "generate", "OutOfMemory"),
        ("ok", None, None),
    ]
    assert "prompt tokens and up to 12 new ones do not fit the device alone" in answers[0].error_message


class ScarceVision:
    """A vision tower that runs out of memory in every call that `exceeds` says yes to."""

    def __init__(self, vision, exceeds):
        self._vision, self._exceeds = vision, exceeds

    def __getattr__(self, name):
        return getattr(self._vision, name)

    def encode(self, samples, tiles_per_call):
        if self._exceeds(samples, tiles_per_call):
            raise torch.OutOfMemoryError("tried to allocate 9 GiB")
        return self._vision.encode(samples, tiles_per_call)


def scarce_engine(oracle: Oracle, settings: EngineSettings, exceeds) -> Engine:
    return Engine(replace(oracle.model, vision=ScarceVision(oracle.model.vision, exceeds)), settings)


def test_images_too_many_for_the_memory_are_encoded_one_by_one_and_one_too_large_alone_becomes_an_error_row(oracle):
    questions = mixed_questions()
    tiles = [len(oracle.sample(q).tiles) for q in questions]

    def exceeds(samples, tiles_per_call):
        return sum(len(sample.tiles) for sample in samples) >= max(tiles)

    engine = scarce_engine(oracle, replace(FP32, tiles_per_call=2 * max(tiles)), exceeds)
    answers = list(engine.generate(oracle.sample(q) for q in questions))
    fits = [num < max(tiles) for num in tiles]
    assert [(a.status, a.error_type) for a in answers] == [
        ("ok", None) if fit else ("error", "OutOfMemory") for fit in fits
    ]
    assert [a.text for a in answers if a.status == "ok"] == [
        oracle.spelled(q) for q, fit in zip(questions, fits, strict=True) if fit
    ]
    assert 0 < sum(fits) < len(fits)


def test_a_decode_step_that_runs_out_of_memory_is_made_again_and_changes_no_answer(oracle):
    questions, asked = mixed_questions(), []

    def check(module, inputs):
        asked.append(len(inputs[0]))
        if asked.count(16) in (3, 9):  # two slots' step runs as a block of 16 rows, a prompt has more tokens
            asked.append(16)
            raise torch.OutOfMemoryError("tried to allocate 9 GiB")

    engine = oracle.engine(replace(FP32, slots=2), repetition_penalty=1.3)
    expected = [oracle.spelled(q, repetition_penalty=1.3) for q in questions]
    handle = oracle.model.decoder.blocks[0].before_mlp.register_forward_pre_hook(check)
    answers = list(engine.generate(oracle.sample(q) for q in questions))
    handle.remove()
    assert [a.text for a in answers] == expected
    assert engine.statistics().num_out_of_memory == 2


def test_the_tower_encodes_fewer_tiles_where_they_do_not_fit_the_memory(oracle):
    questions = mixed_questions()
    engine = scarce_engine(oracle, replace(FP32, tiles_per_call=8), lambda _, tiles_per_call: tiles_per_call > 3)
    answers = list(engine.generate(oracle.sample(q) for q in questions))
    assert [a.text for a in answers] == [oracle.spelled(q) for q in questions]
    assert engine.statistics().num_out_of_memory == 2


def test_a_row_longer_than_a_slot_becomes_an_error_row_with_its_numbers(oracle):
    sample = oracle.sample(Question(id="a", texts=("Why? " * 30,)))
    (answer,) = oracle.engine(replace(FP32, capacity=128)).generate([sample])
    length = len(sample.prompts[0].token_ids)
    assert (answer.status, answer.error_type) == ("error", "TooLong")
    assert f"{length} prompt tokens and up to 12 new ones do not fit the 128 tokens of a slot" in answer.error_message


def test_an_answer_gets_what_its_prompt_leaves_of_a_slot(oracle):
    question = Question(id="a", max_new_tokens=(500,))
    sample = oracle.sample(question)
    (answer,) = oracle.engine(replace(FP32, capacity=128)).generate([sample])
    room = 128 - len(sample.prompts[0].token_ids)
    assert (answer.finish_reason, answer.num_generated_tokens) == ("length", room)
    assert answer.text == oracle.spelled(replace(question, max_new_tokens=(room,)))


@pytest.mark.parametrize("temperature", [0, 1])
def test_numbers_that_overflow_become_an_error_row(oracle, temperature):
    handle = oracle.model.network.lm_head.register_forward_hook(lambda module, inputs, output: output * torch.nan)
    (answer,) = oracle.engine(temperature=temperature).generate([oracle.sample(Question(id="a"))])
    handle.remove()
    assert (answer.status, answer.error_stage, answer.error_type) == ("error", "generate", "NotFinite")


def test_bfloat16_answers_have_the_same_shape(oracle):
    engine = Engine.load(str(checkpoint()), settings=EngineSettings(dtype="bfloat16"))
    answers = list(engine.generate(oracle.sample(q) for q in mixed_questions()))
    assert all(a.status == "ok" and a.num_generated_tokens <= 12 for a in answers)


def test_a_process_may_end_while_its_engine_is_at_work() -> None:
    """Natively: a thread that is taken out of a kernel aborts the process, with 134."""
    done = subprocess.run([sys.executable, "-c", UNFINISHED], cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert (done.returncode, done.stdout) == (0, "ok\n")
