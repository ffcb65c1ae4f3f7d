"""On a GPU: bitsandbytes' 8 and 4 bits give what transformers gives with the same layers."""

import random
from dataclasses import replace

import pytest
import torch

from benchmarks.packed import packed
from pipeline.engine.engine import Engine
from pipeline.engine.network.load import load_model
from tests.engine.oracle import Oracle, Question, mixed_questions
from tests.engine.test_gpu import PLAIN, SHAPE, exact, samples_of
from tests.tiny import build

pytest.importorskip("bitsandbytes")
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

BITS = ("8bit", "4bit")
TOLERANCE = {"float32": 0.02, "bfloat16": 0.1}  # 8 bits round activations: what differs by a bit may be a step apart
GRAPH = replace(PLAIN, quantize="4bit", cuda_graphs=True)


@pytest.fixture(scope="module")
def folder() -> str:
    return str(build(SHAPE))


@torch.inference_mode()
def next_logprobs(oracle: Oracle, question: Question) -> torch.Tensor:
    """What transformers gives every token after the prompt, in one pass without a cache."""
    network = oracle.model.network
    inputs = {name: value.to(network.device) for name, value in oracle.inputs(question, question.texts[0]).items()}
    return network(**inputs).logits[0, -1].float().log_softmax(-1).cpu()


@torch.inference_mode()
def spelled(oracle: Oracle, question: Question) -> str:
    """The answer of transformers' own generate on the device, as the engine spells it."""
    network = oracle.model.network
    inputs = {name: value.to(network.device) for name, value in oracle.inputs(question, question.texts[0]).items()}
    output = network.generate(**inputs, max_new_tokens=question.max_new_tokens[0], do_sample=False)
    ids = output[0, inputs["input_ids"].shape[1] :].tolist()
    return " ".join(str(i) for i in ids if i not in oracle.model.stop_ids)


def test_answers_in_4_bits_and_float32_are_those_of_transformers(folder) -> None:
    settings = replace(GRAPH, dtype="float32")
    oracle = Oracle(load_model(folder, settings), folder)
    questions = mixed_questions()
    answers = Engine(oracle.model, settings).generate(oracle.sample(q) for q in questions)
    assert [a.text for a in answers] == [spelled(oracle, q) for q in questions]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("quantize", BITS)
def test_the_first_token_is_as_likely_as_transformers_says(folder, quantize, dtype) -> None:
    settings = replace(PLAIN, quantize=quantize, dtype=dtype)
    oracle = Oracle(load_model(folder, settings), folder)
    questions = mixed_questions(max_new_tokens=(1,))
    found = [a.mean_logprob for a in Engine(oracle.model, settings).generate(oracle.sample(q) for q in questions)]
    expected = [next_logprobs(oracle, q).max().item() for q in questions]
    assert found == pytest.approx(expected, abs=TOLERANCE[dtype])


def test_a_cuda_graph_of_4_bits_gives_what_single_calls_give(folder) -> None:
    oracle = Oracle(load_model(folder, GRAPH), folder)
    samples = samples_of(oracle)
    assert oracle.model.capturable
    plain = replace(GRAPH, cuda_graphs=False)
    assert exact(Engine(oracle.model, GRAPH), samples) == exact(Engine(oracle.model, plain), samples)


def test_a_row_in_4_bits_has_the_same_numbers_in_any_batch(folder) -> None:
    oracle = Oracle(load_model(folder, GRAPH), folder)
    samples = samples_of(oracle)
    engine = Engine(oracle.model, GRAPH)
    expected = exact(engine, samples)
    random.Random(0).shuffle(samples)
    assert exact(engine, samples) == expected
    few = exact(engine, samples[::5])
    assert few == {key: expected[key] for key in few}


@pytest.mark.parametrize("quantize", BITS)
def test_weights_on_the_card_are_packed_as_loading_packs_them(folder, quantize) -> None:
    settings = replace(PLAIN, quantize=quantize)
    loaded = load_model(folder, settings).network.model.language_model.layers
    plain = load_model(folder, PLAIN).network.model.language_model.layers
    for theirs, layer in zip(loaded, plain, strict=True):
        ours = packed(layer, settings).state_dict()
        assert all(torch.equal(ours.pop(name), stored) for name, stored in theirs.state_dict().items())
        assert not ours
