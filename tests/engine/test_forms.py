"""Answers with a form: always of that form, in every vocabulary, and the same in any company."""

import functools
import json
import random
import re
from dataclasses import replace
from types import SimpleNamespace

import jsonschema
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from pipeline.engine.completion import Completion
from pipeline.engine.engine import Engine
from pipeline.engine.network.forms import Forms
from pipeline.engine.reference.engine import ReferenceEngine
from pipeline.engine.reference.load import ReferenceModel
from pipeline.engine.slots import SlotMasks, fill_masks
from schemas.answer import Generation
from schemas.engine import EngineSettings, Sampling
from schemas.errors import Refused
from schemas.form import Form
from schemas.sample import Prompt, Sample
from tests.engine.oracle import Oracle, mixed_questions
from tests.engine.test_stops import NAMES, vocabulary

CROWDED = EngineSettings(dtype="float32", slots=3, prefill_tokens=1024, bucket=32, tiles_per_call=8, look_ahead=64)
SCHEMA = {
    "type": "object",
    "properties": {
        "shop": {"type": "string", "maxLength": 8},
        "total": {"type": "integer", "minimum": 0, "maximum": 9999},
        "items": {"type": "array", "items": {"enum": ["tea", "Brühe", "日本"]}, "maxItems": 2},
    },
    "required": ["shop", "total"],
}
RECEIPT = Form(kind="json_schema", text=json.dumps(SCHEMA))
WORD = Form(kind="regex", text="[a-f]{3,5}é*")
YES_NO = Form(kind="choices", text='["yes", "no way", "not"]')
FORMS = (RECEIPT, WORD, YES_NO)
GREEDY: dict[str, object] = {}
DRAWN = {"temperature": 1.3, "seed": 5, "repetition_penalty": 1.1}
# Reading the largest vocabularies takes seconds each.
EACH = [pytest.param(name, marks=[pytest.mark.soak] if name in ("vicuna", "34b", "72b") else []) for name in NAMES]


def is_of(form: Form, text: str) -> bool:
    if form.kind == "json_schema":
        jsonschema.validate(json.loads(text), {**json.loads(form.text), "additionalProperties": False})
        return True
    if form.kind == "regex":
        return re.fullmatch(form.text, text) is not None
    return text in json.loads(form.text)


@functools.cache
def model_of(name: str) -> SimpleNamespace:
    """What a completion asks of a model with this vocabulary."""
    tokenizer = vocabulary(name)
    stop_ids = (tokenizer.eos_token_id,)
    return SimpleNamespace(tokenizer=tokenizer, stop_ids=stop_ids, forms=Forms(tokenizer, stop_ids, len(tokenizer)))


def drawn(name: str, form: Form, seed: int, most: int = 200) -> Generation:
    """The answer of a model that knows nothing but the form: any token that may come next is as likely."""
    model, rng = model_of(name), random.Random(seed)
    prompt = Prompt(id="p", text="?", token_ids=np.array([5], np.int32), max_new_tokens=most, form=form)
    completion = Completion(model, Sampling(row_forms=True), prompt)
    masks = SlotMasks(2, model.forms.num_words, pinned=False)
    while completion.finish_reason is None:
        words = fill_masks(masks, model.forms, {1: completion})
        assert (words[0] == -1).all()
        bits = np.unpackbits(words[1].numpy().view(np.uint8), bitorder="little")
        completion.append(int(rng.choice(np.flatnonzero(bits))), -0.5)
    assert completion.failure is None
    return completion.generation()


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.kind)
@pytest.mark.parametrize("name", EACH)
def test_any_answer_of_any_vocabulary_is_of_its_form(name: str, form: Form) -> None:
    answers = [drawn(name, form, seed) for seed in range(8)]
    complete = [answer for answer in answers if answer.finish_reason == "stop"]
    assert len(complete) >= 4
    assert all(is_of(form, answer.text) for answer in complete)


@pytest.mark.parametrize("name", ["demo", "mistral"])
def test_an_answer_that_length_cuts_says_so_and_ends_in_a_whole_character(name: str) -> None:
    text = Form(kind="regex", text="日本語🙂" * 4)
    for most in range(1, 12):
        answer = drawn(name, text, 0, most)
        assert answer.finish_reason == "length"
        assert answer.text != "日本語🙂" * 4
        assert ("日本語🙂" * 4).startswith(answer.text)


def test_a_first_word_may_be_the_piece_with_a_blank_that_the_model_was_taught() -> None:
    model, tokenizer = model_of("mistral"), vocabulary("mistral")
    (blank_yes,) = tokenizer.convert_tokens_to_ids(["▁yes"])
    matcher = model.forms.begin(YES_NO)
    assert matcher.first is not None
    assert matcher.first[blank_yes // 32] >> (blank_yes % 32) & 1
    assert matcher.take(blank_yes)
    assert matcher.text([blank_yes]) == "yes"
    own = model.forms.begin(Form(kind="choices", text='[" yes", "no"]'))
    assert own.text([blank_yes]) == " yes"


def test_a_form_that_no_token_can_begin_is_refused() -> None:
    with pytest.raises(Refused, match="vocabulary can write"):
        model_of("demo").forms.begin(Form(kind="json_schema", text='{"type": "string", "pattern": "(a"}'))


def with_forms(samples: list[Sample], forms: tuple[Form | None, ...]) -> list[Sample]:
    """The samples, each prompt with a form of its own in turn."""
    return [
        replace(sample, prompts=tuple(replace(prompt, form=forms[i % len(forms)]) for prompt in sample.prompts))
        for i, sample in enumerate(samples)
    ]


def exact(engine: Engine | ReferenceEngine, samples: list[Sample]) -> dict[str, tuple[object, ...]]:
    return {a.id: (a.text, a.mean_logprob, a.finish_reason, a.num_generated_tokens) for a in engine.generate(samples)}


@pytest.fixture(scope="module")
def samples(oracle: Oracle) -> list[Sample]:
    return [oracle.sample(question) for question in mixed_questions(max_new_tokens=(70,))]


def engine_of(oracle: Oracle, **sampling: object) -> Engine:
    return Engine(oracle.with_text, replace(CROWDED, sampling=Sampling(**sampling)))


@pytest.mark.parametrize("sampling", [GREEDY, DRAWN], ids=["greedy", "drawn"])
def test_rows_with_and_without_a_form_have_the_numbers_they_have_alone(oracle: Oracle, samples, sampling) -> None:
    mixed = with_forms(samples, (None, *FORMS))
    together = exact(engine_of(oracle, row_forms=True, **sampling), mixed)
    alone = {}
    for sample in reversed(mixed):
        alone |= exact(engine_of(oracle, row_forms=True, **sampling), [sample])
    assert together == alone
    plain = exact(engine_of(oracle, **sampling), [sample for sample in mixed if not sample.prompts[0].form])
    assert {id: together[id] for id in plain} == plain
    for sample in mixed:
        form, (text, *_, reason, _) = sample.prompts[0].form, together[sample.id]
        assert form is None or reason == "length" or is_of(form, text)


def test_a_vocabulary_that_leaves_ids_out_writes_forms_with_its_last_tokens_too() -> None:
    letters = {letter: 1000 + i for i, letter in enumerate("yesnotwa")}
    spelling = Tokenizer(models.BPE(vocab={"<s>": 0, **letters, "</s>": 1100}, merges=[]))
    spelling.decoder = decoders.ByteLevel()
    spelling.add_special_tokens(["<s>", "</s>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=spelling, eos_token="</s>")
    model = SimpleNamespace(tokenizer=tokenizer, stop_ids=(1100,), forms=Forms(tokenizer, (1100,), 1101))
    prompt = Prompt(id="p", text="?", token_ids=np.array([0], np.int32), max_new_tokens=9, form=YES_NO)
    completion = Completion(model, Sampling(row_forms=True), prompt)
    masks = SlotMasks(1, model.forms.num_words, pinned=False)
    allowed = []
    for token in (letters["y"], letters["e"], letters["s"]):
        words = fill_masks(masks, model.forms, {0: completion})
        allowed.append(np.flatnonzero(np.unpackbits(words[0].numpy().view(np.uint8), bitorder="little")).tolist())
        completion.append(token, -0.5)
    assert allowed == [sorted((letters["y"], letters["n"])), [letters["e"]], [letters["s"]]]
    assert (completion.finish_reason, completion.failure) == ("stop", None)


def test_the_form_of_a_job_is_that_of_every_row_without_its_own(oracle: Oracle, samples) -> None:
    found = exact(engine_of(oracle, form=YES_NO, row_forms=True), with_forms(samples, (None, WORD)))
    assert all(is_of((YES_NO, WORD)[i % 2], str(found[sample.id][0])) for i, sample in enumerate(samples))


def test_transformers_engine_gives_the_same_answers(oracle: Oracle, samples) -> None:
    own = oracle.with_text
    model = ReferenceModel(
        network=own.network,
        tokenizer=own.tokenizer,
        scale=own.vision._scale,
        end_ids=own.stop_ids,
        stop_ids=own.stop_ids,
        num_tokens=own.num_tokens,
        forms=own.forms,
    )
    settings, mixed = replace(CROWDED, sampling=Sampling(row_forms=True)), with_forms(samples, (RECEIPT, None, YES_NO))
    texts = {a.id: a.text for a in ReferenceEngine(model, settings).generate(mixed)}
    assert texts == {a.id: a.text for a in Engine(own, settings).generate(mixed)}


def test_an_answer_that_repeats_itself_within_its_form_is_tried_again_from_the_form_s_beginning() -> None:
    model = model_of("demo")
    form = Form(kind="regex", text="a{400,1200}")
    prompt = Prompt(id="p", text="?", token_ids=np.array([5], np.int32), max_new_tokens=390, form=form)
    first = Completion(model, Sampling(row_forms=True, cut_repetition=True), prompt)
    (letter,) = model.tokenizer.encode("a", add_special_tokens=False)
    for _ in range(390):
        first.append(letter, -0.5)
    again = first.retry()
    assert (first.finish_reason, again is not None) == ("repetition", True)
    assert again is not None
    assert again.form is not None
    assert again.form.first is not None


@pytest.mark.parametrize("given", [{"stop": ("x",)}, {"min_new_tokens": 3}], ids=["stop", "min_new_tokens"])
def test_what_ends_an_answer_elsewhere_than_its_form_is_refused(given) -> None:
    with pytest.raises(Refused, match="where answers have a form"):
        Sampling(form=YES_NO, **given)


def test_a_mask_allows_what_it_did_once_its_slot_has_another_row() -> None:
    model = model_of("demo")
    masks = SlotMasks(3, model.forms.num_words, pinned=False)
    filled, lost = masks.fill(model.forms, {0: model.forms.begin(WORD), 2: model.forms.begin(YES_NO)})
    assert not lost
    assert masks.is_set
    assert not torch.equal(filled[0], filled[2])
    filled, _ = masks.fill(model.forms, {})
    assert not masks.is_set
    assert bool((filled == -1).all())
