"""Pages may hold what is not finite, which attention multiplies by 0 where it masks it: no row may have any of it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch

from pipeline.engine.admit import admit, group
from pipeline.engine.engine import Engine
from pipeline.engine.kernels.pages import EMPTY, PAGE
from pipeline.engine.model_runner import ModelRunner
from pipeline.engine.network.kv_cache import KVCache
from pipeline.engine.network.load import load_model
from pipeline.engine.scheduler import Scheduler
from pipeline.engine.shapes import resolve_shapes
from schemas.engine import EngineSettings, Sampling
from schemas.sample import Sample
from tests.engine import prefixes
from tests.engine.oracle import Oracle, Question, mixed_questions
from tests.engine.prefixes import TEXTS, exact
from tests.engine.test_forms import WORD, YES_NO, with_forms
from tests.tiny import checkpoint

SETTINGS = EngineSettings(slots=5, prefill_tokens=1024, tiles_per_call=8)
ALONE = replace(SETTINGS, slots=1, capacity=512)  # whoever comes next gets the pages that were used last
LONG = Question(id="long", texts=("Why? " * 60,), max_new_tokens=(5,))
NEXT = Question(id="next", texts=("Where?",), max_new_tokens=(9,))
KEPT = [None, "int8"]


@pytest.fixture(scope="module", params=["float32", "bfloat16", "float16"])
def asked(request) -> Oracle:
    return Oracle(load_model(str(checkpoint()), replace(SETTINGS, dtype=request.param)), str(checkpoint()))


@contextmanager
def overflowing(oracle: Oracle, token_id: int) -> Iterator[None]:
    """Let everything that is computed of a token overflow."""
    own = oracle.model.decoder.embedding.weight.data[token_id]
    before = own.clone()
    own.fill_(torch.inf)
    try:
        yield
    finally:
        own.copy_(before)


class AsOnGpu:
    """An engine whose tokens are read a step late, so that its last step of a row is one too many."""

    def __init__(self, oracle: Oracle, settings: EngineSettings) -> None:
        self.model, self.shapes = oracle.with_text, resolve_shapes(oracle.model, settings)
        self.sampling = settings.sampling
        self.runner = ModelRunner(self.model, settings.sampling, self.shapes)
        self.scheduler = Scheduler(self.runner, self.shapes, on_gpu=True)

    def answers(self, samples: Sequence[Sample]):
        sequences = [one for sample in samples for one in self.add(sample)]
        while not self.scheduler.is_idle:
            self.scheduler.step(more_to_come=False)
        answers = [sequence.answer() for sequence in sequences]
        return {(a.id, a.prompt_id): (a.text, a.mean_logprob) for a in answers}

    def add(self, sample: Sample):
        sequences = admit(sample, self.model, self.sampling, self.shapes)
        self.scheduler.add(group(sequences, self.model.image_token_id, self.shapes))
        return sequences


def tokens_of(oracle: Oracle, question: Question) -> list[int]:
    return [
        int(one) for answer in oracle.engine(ALONE).generate([oracle.sample(question)]) for one in answer.text.split()
    ]


def spoil(cache: KVCache, num_layers: int) -> None:
    """Leave nothing finite in any page that is ever written to."""
    for layer in range(num_layers):
        for stored in cache.of(layer):
            held = stored.numbers if stored.scales is None else stored.scales
            held[:, (EMPTY + 1) * PAGE :] = torch.nan


@pytest.mark.parametrize("kept", KEPT)
def test_a_step_too_many_that_overflows_spoils_no_row_that_gets_the_pages(asked, kept) -> None:
    settings, following = replace(ALONE, kv_cache_dtype=kept), asked.sample(NEXT)
    *_, last = tokens_of(asked, LONG)
    assert last not in tokens_of(asked, NEXT)
    expected = AsOnGpu(asked, settings).answers([following])
    with overflowing(asked, last):  # it ends the answer, so that nothing need be computed of it
        found = AsOnGpu(asked, settings).answers([asked.sample(LONG), following])
    assert found[LONG.id, "p0"][0] is not None
    assert {key: found[key] for key in expected} == expected


@pytest.mark.parametrize("kept", KEPT)
def test_a_row_that_is_aborted_before_its_overflow_is_read_spoils_no_row_that_gets_the_pages(asked, kept) -> None:
    settings, following = replace(ALONE, kv_cache_dtype=kept), asked.sample(NEXT)
    third = tokens_of(asked, LONG)[2]
    expected = AsOnGpu(asked, settings).answers([following])
    with overflowing(asked, third):
        for num_steps in range(1, 6):
            engine = AsOnGpu(asked, settings)
            sequences = engine.add(asked.sample(LONG))
            for _ in range(num_steps):
                engine.scheduler.step(more_to_come=False)
            engine.scheduler.abort(sequences)
            assert engine.answers([following]) == expected


@pytest.mark.parametrize(("kept", "forms"), [(None, False), ("int8", True)])
def test_whatever_is_in_the_pages_that_rows_get_they_have_the_numbers_of_new_pages(asked, kept, forms) -> None:
    settings = replace(SETTINGS, kv_cache_dtype=kept, sampling=Sampling(row_forms=forms))
    questions = mixed_questions(max_new_tokens=(9,))
    questions += [replace(one, id=f"{one.id}-thrice", texts=TEXTS) for one in questions[:2]]
    alone = [asked.sample(one) for one in questions]
    behind = [replace(one, id=f"{one.id}-behind") for one in prefixes.mixed_samples(asked, max_new_tokens=(3,))[::3]]
    samples = with_forms([*alone, *behind], (None, YES_NO, WORD)) if forms else [*alone, *behind]
    engine = AsOnGpu(asked, settings)
    spoil(engine.runner.cache, asked.model.decoder.shape.layers)
    assert engine.answers(samples) == exact(Engine(asked.with_text, settings), samples)


@pytest.mark.parametrize("kept", KEPT)
@pytest.mark.parametrize("behind", [False, True])
def test_a_question_that_overflows_spoils_none_about_the_same_image(asked, kept, behind) -> None:
    settings = replace(SETTINGS, kv_cache_dtype=kept)
    sample = asked.sample(
        Question(id="a", texts=("Where is all of this #?", "Where is all of this?", "Where is all of?"))
    )
    ids = [set(prompt.token_ids.tolist()) for prompt in sample.prompts]
    (own,) = ids[0] - ids[1] - ids[2]
    if behind:
        sample = prefixes.behind(prefixes.SYSTEM, asked, sample)
    expected = exact(Engine(asked.with_text, settings), [sample])
    with overflowing(asked, own):
        found = exact(Engine(asked.with_text, settings), [sample])
    assert found.pop(("a", "p0")) == (None, None)
    assert found == {key: expected[key] for key in found}
    assert np.isfinite([logprob for _, logprob in found.values()]).all()
