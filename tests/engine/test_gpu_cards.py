"""On two GPUs: one model over both answers as transformers does on one, and a model on either as on the other."""

from dataclasses import replace

import pytest
import torch

from pipeline.engine.engine import Engine
from pipeline.engine.network.load import load_model
from schemas.engine import EngineSettings, Sampling
from tests.engine.oracle import Oracle, mixed_questions
from tests.engine.prefixes import exact
from tests.engine.test_gpu import FAST, PLAIN, SHAPE, samples_of
from tests.tiny import build

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")]

BOTH = replace(FAST, num_devices=2)
QWEN2 = replace(SHAPE, backbone="qwen2", text_kv_heads=8, text_layers=5)


@pytest.fixture(scope="module")
def folder() -> str:
    return str(build(SHAPE))


def answered(folder: str, settings: EngineSettings):
    oracle = Oracle(load_model(folder, settings), folder)
    return exact(Engine(oracle.model, settings), samples_of(oracle))


@pytest.mark.parametrize("kernel", ["sdpa", "triton"])
def test_answers_over_two_cards_in_float32_are_those_of_transformers(folder, kernel) -> None:
    settings = replace(BOTH, dtype="float32", decode_kernel=kernel)
    oracle = Oracle(load_model(folder, settings), folder)
    reference = Oracle(load_model(folder, EngineSettings(dtype="float32")), folder)
    questions = mixed_questions()
    answers = Engine(oracle.model, settings).generate(oracle.sample(q) for q in questions)
    assert [a.text for a in answers] == [reference.spelled(q) for q in questions]


@pytest.mark.parametrize(
    ("shape", "dtype", "sampling"),
    [
        pytest.param(SHAPE, "float32", Sampling(), id="float32"),
        pytest.param(SHAPE, "bfloat16", Sampling(temperature=0.8, top_p=0.9, seed=3), id="sampled"),
        pytest.param(QWEN2, "bfloat16", Sampling(), id="qwen2"),
    ],
)
def test_layers_over_two_cards_give_every_number_of_one_card(shape, dtype, sampling) -> None:
    own = str(build(shape))
    one, both = (replace(FAST, dtype=dtype, sampling=sampling, num_devices=num) for num in (1, 2))
    assert answered(own, both) == answered(own, one)


def test_the_second_card_gives_every_number_of_the_first(folder) -> None:
    assert answered(folder, replace(FAST, device="cuda:1")) == answered(folder, replace(FAST, device="cuda:0"))


def test_half_of_the_layers_and_the_vocabularys_product_are_on_the_second_card(folder) -> None:
    model = load_model(folder, BOTH)
    parts = model.decoder.parts
    assert [part.device for part in parts] == [torch.device("cuda", 0), torch.device("cuda", 1)]
    for part in parts:
        found = {weight.device for layer in part.layers for weight in model.decoder.blocks[layer].parameters()}
        assert found == {part.device}
    assert model.network.lm_head.weight.device == parts[1].device
    assert {weight.device for weight in model.network.model.vision_tower.parameters()} == {parts[0].device}
    assert model.capturable


def answered_alone(folder: str, settings: EngineSettings):
    """The answers of rows of one prompt, each by an engine of its own: in bitsandbytes' 8 bits the rows of one product
    may change each other's numbers, and over two cards others share one, those of idle slots among them."""
    oracle = Oracle(load_model(folder, settings), folder)
    samples = [oracle.sample(question) for question in mixed_questions()]
    return [exact(Engine(oracle.model, settings), [sample]) for sample in samples]


@pytest.mark.parametrize("quantize", ["8bit", "4bit", "fp8"])
def test_fewer_bits_over_two_cards_give_every_number_of_one_card(folder, quantize) -> None:
    if quantize != "fp8":
        pytest.importorskip("bitsandbytes")
    ask = answered_alone if quantize == "8bit" else answered
    one, both = (replace(PLAIN, quantize=quantize, num_devices=num) for num in (1, 2))
    assert ask(folder, both) == ask(folder, one)
