"""What a model needs of a card, from its config alone."""

from dataclasses import replace

import pytest
from transformers import AutoConfig, PreTrainedConfig

from benchmarks.random_model import SHAPES, full_config
from pipeline.engine.network.load import load_model
from pipeline.engine.network.memory import check_memory, memory_of
from schemas.engine import EngineSettings
from tests.tiny import checkpoint

GPU = EngineSettings(device="cuda")
H200 = 150 * 10**9
GB = 10**9


def config_of(name: str) -> PreTrainedConfig:
    text = SHAPES[name]
    assert text is not None
    return full_config(text())


@pytest.mark.parametrize(
    ("shape", "weights"), [("mistral-7b", 15.1), ("vicuna-13b", 26.7), ("34b", 69.5), ("72b", 145.3), ("110b", 223.2)]
)
def test_weights_are_those_of_the_published_checkpoints(shape, weights) -> None:
    assert memory_of(config_of(shape), GPU).weights / GB == pytest.approx(weights, abs=0.1)


@pytest.mark.parametrize("quantize", [None, "fp8", "4bit"])
def test_the_estimate_is_what_a_loaded_network_takes(quantize) -> None:
    settings = EngineSettings(dtype="bfloat16", quantize=quantize)
    model = load_model(str(checkpoint()), settings)
    tensors = [*model.network.parameters(), *(b for one in model.decoder.blocks for b in one.buffers())]
    tensors += [weight for one in model.decoder.blocks for weight in one.parameters()]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    estimated = memory_of(AutoConfig.from_pretrained(str(checkpoint())), settings).weights
    assert estimated == pytest.approx(sum(storages.values()), rel=0.05)


def test_two_cards_have_half_the_layers_each() -> None:
    one, two = (memory_of(config_of("72b"), replace(GPU, num_devices=n)) for n in (1, 2))
    assert one.weights == two.weights == one.weights_a_card
    assert two.weights_a_card == pytest.approx(one.weights / 2, rel=0.02)
    assert two.sequence_a_card * 2 == two.sequence == one.sequence


def test_72b_fits_no_card_in_16_bits_and_the_error_says_what_would() -> None:
    with pytest.raises(ValueError, match="must fit the cards' memory: 145.3 GB of weights .bfloat16.") as error:
        check_memory(config_of("72b"), GPU, H200)
    assert "a card has 150 GB" in str(error.value)
    assert str(error.value).endswith("What would fit: --gpus-per-model 2, or --quantize fp8, or --quantize 4bit")


@pytest.mark.parametrize(
    ("shape", "settings"),
    [
        ("34b", GPU),
        ("72b", replace(GPU, num_devices=2)),
        ("72b", replace(GPU, quantize="fp8")),
        ("110b", replace(GPU, num_devices=2)),
        ("110b", replace(GPU, quantize="4bit")),
    ],
)
def test_what_fits_is_let_through(shape, settings) -> None:
    check_memory(config_of(shape), settings, H200)


def test_a_model_that_nothing_makes_fit_needs_a_larger_card() -> None:
    with pytest.raises(ValueError, match="What would fit: a larger card$"):
        check_memory(config_of("110b"), GPU, 4 * GB)


@pytest.mark.parametrize("text", [False, True], ids=["config", "text config"])
def test_weights_that_either_config_calls_packed_are_counted_as_packed(text: bool) -> None:
    config = config_of("mistral-7b")
    (config.text_config if text else config).quantization_config = {"load_in_4bit": True}
    assert memory_of(config, GPU) == memory_of(config_of("mistral-7b"), replace(GPU, quantize="4bit"))
