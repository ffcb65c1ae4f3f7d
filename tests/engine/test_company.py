"""Rows that overflow, have no room, or a form that nothing is of: they cost the rows beside them no bit."""

import random
from dataclasses import replace

import numpy as np
import pytest

from pipeline.engine.network.load import load_model
from schemas.engine import EngineSettings, Sampling
from schemas.form import Form
from schemas.sample import Sample
from tests.engine import prefixes
from tests.engine.oracle import Oracle, Question, mixed_questions, picture
from tests.engine.prefixes import TEXTS
from tests.engine.test_forms import RECEIPT, WORD, YES_NO, with_forms
from tests.engine.test_spoiled_pages import AsOnGpu, overflowing
from tests.tiny import checkpoint

# A prefill of fewer tokens than most rows with an image have, and of none that many images have.
SETTINGS = EngineSettings(slots=5, prefill_tokens=96, tiles_per_call=3, capacity=640, dtype="float32")
WAYS = {
    "plain": {},
    "bfloat16": {"dtype": "bfloat16"},
    "int8": {"kv_cache_dtype": "int8"},
    "two parts": {"num_devices": 2},
    "4bit": {"quantize": "4bit"},
}
UNWRITABLE = Form(kind="json_schema", text='{"type": "string", "pattern": "(a"}')
ENDS = {
    "greedy": {},
    "drawn": {"temperature": 1.5, "seed": 3, "repetition_penalty": 1.2, "logprobs": 2},
    "forms": {"row_forms": True, "temperature": 1.5},
    "stop": {"stop": ("e", "\ufffd", "<user>", "\n" * 300, "\x00", "y yyyyyyz"), "min_new_tokens": 2},
}


@pytest.fixture(scope="module", params=WAYS)
def asked(request) -> tuple[Oracle, EngineSettings]:
    if request.param == "4bit":
        pytest.importorskip("bitsandbytes")
    settings = replace(SETTINGS, **WAYS[request.param])
    return Oracle(load_model(str(checkpoint()), settings), str(checkpoint())), settings


def rows(oracle: Oracle) -> list[Sample]:
    """Rows of which every second one misbehaves, some of them behind what the job begins with."""
    many = tuple(picture((33, 500), seed) for seed in range(2))
    questions = [
        Question(id="overflows", texts=("Is this #?",), max_new_tokens=(8,)),
        Question(id="one token", max_new_tokens=(1,)),
        Question(id="overflows thrice", images=(picture((40, 200)),), texts=("Is it #?", *TEXTS[:2])),
        Question(id="no room", texts=("Why? " * 100,), max_new_tokens=(10**9,)),
        Question(id="too long", texts=("Why? " * 900,)),
        Question(id="images", images=many, max_new_tokens=(6,)),
        *mixed_questions(max_new_tokens=(9,))[:3],
    ]
    samples = [oracle.sample(one) for one in questions]
    samples[0] = prefixes.behind(prefixes.SYSTEM, oracle, samples[0])
    return [*samples, prefixes.behind(prefixes.SYSTEM, oracle, oracle.sample(Question(id="behind", texts=TEXTS)))]


def in_company(draw: random.Random, engine: AsOnGpu, samples: list[Sample]):
    """Answers of samples that come in any order, one or two at a time, while others are at work."""
    coming, sequences = draw.sample(samples, len(samples)), []
    while coming or not engine.scheduler.is_idle:
        for sample in [coming.pop() for _ in range(min(len(coming), draw.randint(0, 2)))]:
            sequences += engine.add(sample)
        engine.scheduler.step(more_to_come=bool(coming) and draw.random() < 0.5)
    return sorted((one.answer() for one in sequences), key=lambda one: (one.id, one.prompt_id))


@pytest.mark.parametrize("ends", ENDS)
def test_rows_that_misbehave_change_no_answer_and_end_no_engine(asked, ends) -> None:
    oracle, settings = asked
    settings = replace(settings, sampling=Sampling(**ENDS[ends]))
    samples, draw = rows(oracle), random.Random(ends)
    if ends == "forms":
        samples = with_forms(samples, (WORD, YES_NO, UNWRITABLE, RECEIPT, None))
    (own,) = oracle.processor.tokenizer.convert_tokens_to_ids(["#"])
    with overflowing(oracle, own):
        alone = [answer for sample in samples for answer in in_company(draw, AsOnGpu(oracle, settings), [sample])]
        expected = sorted(alone, key=lambda one: (one.id, one.prompt_id))
        for _ in range(2):
            few = draw.sample(samples, draw.randint(3, len(samples)))
            ids = {sample.id for sample in few}
            found = in_company(draw, AsOnGpu(oracle, settings), few)
            assert found == [one for one in expected if one.id in ids]
    errors = {(one.id, one.prompt_id): one.error_type for one in expected}
    assert errors["overflows", "p0"] in ("NotFinite", "FormRefused")
    assert errors["too long", "p0"] == "TooLong"
    assert np.sum([error is None for error in errors.values()]) >= 5
