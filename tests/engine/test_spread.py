"""One model over several devices: the same answers, every number on the device of its layer."""

from dataclasses import replace

import pytest
import torch

from pipeline.engine.engine import Engine
from pipeline.engine.model import load_model
from pipeline.engine.spread import spread
from schemas.engine import EngineSettings
from tests.engine.oracle import FP32, mixed_questions
from tests.tiny import checkpoint

TEXTS = ("What is this?", "Where is it?", "How many of them are there, and of which colour?")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("quantize", [None, "fp8"])
def test_over_two_devices_every_answer_is_that_of_one_bit_for_bit(oracle, dtype, quantize) -> None:
    samples = [oracle.sample(replace(q, texts=TEXTS)) for q in mixed_questions()]
    found = []
    for num_devices in (1, 2):
        settings = EngineSettings(dtype=dtype, num_devices=num_devices, quantize=quantize, slots=4)
        engine = Engine(load_model(str(checkpoint()), settings), settings)
        found.append([(a.id, a.text, a.mean_logprob) for a in engine.generate(samples)])
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("num_layers", "num_devices", "shares"), [(80, 2, [40, 40]), (32, 3, [10, 11, 11]), (2, 2, [1, 1]), (5, 1, [5])]
)
def test_devices_share_the_layers_in_order(num_layers, num_devices, shares) -> None:
    parts = spread(num_layers, [torch.device("cpu")] * num_devices)
    assert [len(part.layers) for part in parts] == shares
    assert [layer for part in parts for layer in part.layers] == list(range(num_layers))


def test_more_devices_than_layers_are_refused() -> None:
    with pytest.raises(ValueError, match="num_devices must be at most the model's 2 layers, got 3"):
        load_model(str(checkpoint()), replace(FP32, num_devices=3))
