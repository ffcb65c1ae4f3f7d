"""Over several devices: prefills follow each other, decode batches take turns, and no answer changes."""

from dataclasses import replace
from itertools import count, groupby

import pytest
import torch

from pipeline.engine.admit import admit
from pipeline.engine.engine import Engine
from pipeline.engine.kernels.pages import EMPTY, PAGE
from pipeline.engine.model_runner import ModelRunner
from pipeline.engine.network.forms import Forms
from pipeline.engine.network.load import load_model
from pipeline.engine.prefill_group import group_sequences
from pipeline.engine.scheduler import Scheduler
from pipeline.engine.shapes import resolve_shapes
from schemas.engine import BLOCK, Sampling
from tests.engine.groups import sequence_of
from tests.engine.oracle import FP32, Oracle, Question
from tests.engine.test_forms import RECEIPT, WORD, YES_NO, with_forms
from tests.tiny import checkpoint

SETTINGS = replace(FP32, num_devices=2, slots=4)


@pytest.fixture(scope="module")
def halves() -> Oracle:
    return Oracle(load_model(str(checkpoint()), SETTINGS), str(checkpoint()))


class Watched(ModelRunner):
    """A runner that writes down what it launches: P, or the number of the decode batch that takes a step."""

    def __init__(self, *arguments) -> None:
        super().__init__(*arguments)
        self.launched = ""

    def prefill(self, batch, images):
        self.launched += "P"
        return super().prefill(batch, images)

    def decode(self, running, batch, read_due):
        self.launched += str(batch)
        return super().decode(running, batch, read_due)


def answered(oracle: Oracle, questions: list[Question], **shapes) -> tuple[Watched, list[str]]:
    """Answer questions as on GPUs, whose tokens are read late; return the runner and the texts."""
    resolved = replace(resolve_shapes(oracle.model, SETTINGS), **shapes)
    runner = Watched(oracle.model, SETTINGS.sampling, resolved)
    scheduler = Scheduler(runner, resolved, on_gpu=True)
    sequences = []
    for sample in map(oracle.sample, questions):
        sequences.append(sequence_of(sample, sample.prompts[0], oracle.model))
        scheduler.add(group_sequences(sequences[-1:], 3, oracle.model.image_token_id))
    while not scheduler.is_idle:
        scheduler.step(more_to_come=False)
    return runner, [sequence.answer().text for sequence in sequences]


@pytest.mark.parametrize("prefills_in_row", [1, 3])
def test_answers_are_those_of_each_question_alone(halves, prefills_in_row) -> None:
    questions = [Question(id=str(i), max_new_tokens=(n,)) for i, n in enumerate((1, 9, 2, 7, 12, 1, 5, 8, 3, 11, 6, 2))]
    _, texts = answered(halves, questions, prefills_in_row=prefills_in_row)
    assert texts == [halves.spelled(question) for question in questions]


def test_both_batches_take_sequences_and_steps_in_turn(halves) -> None:
    runner, _ = answered(halves, [Question(id=str(i), max_new_tokens=(6,)) for i in range(4)])
    assert runner.launched == "PPPP" + "01" * 6  # the first of 6 tokens is a prefill's, and one step is too many


def test_prefills_wait_until_several_follow_each_other(halves) -> None:
    questions = [Question(id=str(i), max_new_tokens=(2 + i % 5,)) for i in range(24)]
    rows = [
        len(list(run))
        for kind, run in groupby(answered(halves, questions, prefills_in_row=3)[0].launched)
        if kind == "P"
    ]
    assert min(rows[:-1]) >= 3


def test_a_step_too_many_writes_to_no_page_but_its_own(halves) -> None:
    questions = [Question(id=str(i), max_new_tokens=(1 + i % 3,)) for i in range(12)]
    runner, _ = answered(halves, questions)
    for layer in range(halves.model.decoder.shape.layers):
        for stored in runner.cache.of(layer):
            assert torch.count_nonzero(stored.numbers[:, EMPTY * PAGE : (EMPTY + 1) * PAGE]) == 0


def test_a_step_that_memory_ends_on_its_second_device_is_made_again_from_the_first(halves) -> None:
    questions = [Question(id=str(i), texts=("What is this? " * 2,), max_new_tokens=(9,)) for i in range(3)]
    num_steps = count(1)

    def check(module, inputs) -> None:
        if len(inputs[0]) == BLOCK and next(num_steps) in (2, 7):  # a prompt has more tokens than a step has rows
            raise torch.OutOfMemoryError("tried to allocate 9 GiB")

    wanted = list(Engine(halves.model, SETTINGS).generate(map(halves.sample, questions)))
    handle = halves.model.decoder.blocks[-1].before_attention.register_forward_pre_hook(check)
    engine = Engine(halves.model, SETTINGS)
    found = list(engine.generate(map(halves.sample, questions)))
    handle.remove()
    assert engine.statistics().num_out_of_memory == 2
    assert found == wanted


class ScarceForms:
    """Forms with whose second step the memory runs out."""

    def __init__(self, forms: Forms) -> None:
        self._forms, self._num_steps = forms, count(1)

    def __getattr__(self, name: str):
        return getattr(self._forms, name)

    def fill(self, matchers, masks):
        if masks.shape[0] == BLOCK and next(self._num_steps) == 3:  # the first fill is a prefill's
            raise torch.OutOfMemoryError("tried to allocate 9 GiB")
        return self._forms.fill(matchers, masks)


def test_a_step_that_memory_ends_at_its_sampler_is_made_again_from_the_network(halves) -> None:
    settings = replace(SETTINGS, num_devices=1, slots=1, sampling=Sampling(form=RECEIPT))
    sample = halves.sample(Question(id="a", max_new_tokens=(9,)))
    oracle = Oracle(load_model(str(checkpoint()), settings), str(checkpoint()))
    (wanted,) = Engine(oracle.model, settings).generate([sample])
    engine = Engine(replace(oracle.model, forms=ScarceForms(oracle.model.forms)), settings)
    assert list(engine.generate([sample])) == [wanted]
    assert engine.statistics().num_out_of_memory == 1


def test_answers_with_a_form_are_the_same_where_tokens_are_read_late(halves) -> None:
    """Rows with a form and without follow each other in every slot."""
    questions = [Question(id=str(i), max_new_tokens=(6 + 5 * (i % 7),)) for i in range(30)]
    samples = with_forms([halves.sample(question) for question in questions], (None, YES_NO, WORD, None, RECEIPT))
    settings = replace(SETTINGS, sampling=Sampling(row_forms=True))
    shapes = resolve_shapes(halves.model, settings)
    runner = ModelRunner(halves.model, settings.sampling, shapes)
    scheduler = Scheduler(runner, shapes, on_gpu=True)
    sequences = [admit(sample, halves.model, settings.sampling, shapes)[0] for sample in samples]
    for sequence in sequences:
        scheduler.add(group_sequences([sequence], 3, halves.model.image_token_id))
    while not scheduler.is_idle:
        scheduler.step(more_to_come=False)
    found = [(one.text, one.mean_logprob, one.finish_reason) for one in (sequence.answer() for sequence in sequences)]
    alone = Engine(halves.model, replace(settings, slots=1)).generate(samples)
    assert [text for text, *_ in found] == [one.text for one in alone]
    at_once = Engine(halves.model, settings).generate(samples)
    assert found == [(one.text, one.mean_logprob, one.finish_reason) for one in at_once]
