"""One model over several devices: the same answers, every number on the device of its layer."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from pipeline.engine.batch import make_batch
from pipeline.engine.engine import Engine
from pipeline.engine.kernels.device import Streams, hand_over
from pipeline.engine.kernels.layout import QueryBlocks, layout
from pipeline.engine.kernels.stored import Stored
from pipeline.engine.kernels.torch_attention import attend_together, cached, paged
from pipeline.engine.network.decoder import Decoder
from pipeline.engine.network.kv_cache import KVCache
from pipeline.engine.network.load import load_model
from pipeline.engine.network.memory import cache_shape
from pipeline.engine.network.partition import device_map, partition
from schemas.engine import EngineSettings
from tests.engine.groups import allocated, allocation, group
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
    parts = partition(num_layers, [torch.device("cpu")] * num_devices)
    assert [len(part.layers) for part in parts] == shares
    assert [layer for part in parts for layer in part.layers] == list(range(num_layers))


def test_more_devices_than_layers_are_refused() -> None:
    with pytest.raises(ValueError, match="num_devices must be at most the model's 2 layers, got 3"):
        load_model(str(checkpoint()), replace(FP32, num_devices=3))


def pretend(module: nn.Module, device: torch.device) -> None:
    """Give a module weights without numbers that torch takes to be on `device`."""
    for part in module.modules():
        for name, weight in part.named_parameters(recurse=False):
            fake = torch.empty(weight.shape, dtype=weight.dtype, device=device)
            setattr(part, name, nn.Parameter(fake, requires_grad=False))


def pretended(decoder: Decoder, devices: list[torch.device]) -> Decoder:
    """The decoder as it would be over devices that this machine lacks."""
    decoder.parts = partition(decoder.shape.layers, devices)
    decoder._streams = [Streams(device) for device in devices]
    for part in decoder.parts:
        for layer in part.layers:
            pretend(decoder.blocks[layer], part.device)
    pretend(decoder.embedding, devices[0])
    pretend(decoder.norm, devices[-1])
    pretend(decoder.head, devices[-1])
    decoder.frequencies = torch.empty(decoder.frequencies.shape, device=devices[0])
    return decoder


def attend_shapes(queries: Tensor, keys: Stored, values: Stored, blocks: QueryBlocks, out: Tensor) -> None:
    """Attention of blocks to pages that needs no number from a device: those here have none."""
    rows = len(blocks.tables)
    here, at = queries[: rows * blocks.width].unflatten(0, (rows, blocks.width)), blocks.positions[:, None]
    key, value = (paged(one, blocks.tables, queries.dtype).transpose(0, 1) for one in (keys, values))
    out[: rows * blocks.width] = cached(here, key, value, at.expand(-1, blocks.width)).flatten(0, 1)


@torch.inference_mode()
def test_nothing_meets_a_number_of_another_device() -> None:
    """Torch checks the devices of every operation as on real ones, without a number being computed."""
    decoder = load_model(str(checkpoint()), FP32).decoder
    with FakeTensorMode():
        decoder = pretended(decoder, [torch.device("cpu"), torch.device("meta")])
        cache = KVCache(cache_shape(decoder.shape, 20), decoder.rotary(64), decoder.parts)
        groups = [allocated(group("a", 20, num_sequences=2), 0, 1), allocated(group("b", 7), 2)]
        batch = make_batch(groups, num_padded_tokens=96, bucket=16)
        attend = partial(attend_together, span=64)
        prefilled = decoder.embed(torch.zeros(96).long())
        stepped = prefilled[:16]
        for number, part in enumerate(decoder.parts):
            there = part.device
            where = layout(batch.segments, num_padded_tokens=96, num_sampled=16, max_sequence_length=64, device=there)
            prefilled = decoder.prefill(number, hand_over(prefilled, there), where, cache, attend_shapes)
            positions, tables = torch.zeros(16, device=there).long(), torch.ones(3, 1, device=there).long()
            stepped = decoder.step(number, hand_over(stepped, there), positions, tables, cache, attend)
        cache.clear(allocation(0).pages)
        states: list[Tensor] = [prefilled, stepped]
        assert {state.device.type for state in states} == {"meta"}
        assert {decoder.logits(state).device.type for state in states} == {"meta"}
        assert {stored.numbers.device.type for stored in cache.of(1)} == {"meta"}


def test_weights_go_to_the_device_of_their_layer(oracle) -> None:
    devices = [torch.device("cpu"), torch.device("meta")]
    placed = device_map(partition(oracle.model.decoder.shape.layers, devices))
    names = [name for name, _ in oracle.model.network.named_parameters()]
    owners = {name: [key for key in placed if f"{name}.".startswith(f"{key}.")] for name in names}
    assert all(len(keys) == 1 for keys in owners.values())
    assert {name for name in names if placed[owners[name][0]].type == "meta"} == {
        name for name in names if name.startswith(("model.language_model.layers.1.", "model.language_model.norm", "lm"))
    }
