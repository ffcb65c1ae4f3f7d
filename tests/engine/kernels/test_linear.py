"""Joined and 8-bit products against the plain ones."""

import pytest
import torch
from torch import nn

from pipeline.engine.engine import Engine
from pipeline.engine.kernels.linear import Fp8Linear, SideBySide, join, quantise
from pipeline.engine.network.load import load_model
from schemas.engine import EngineSettings
from tests.engine.oracle import mixed_questions
from tests.tiny import checkpoint


def layers(bias: bool) -> list[nn.Linear]:
    torch.manual_seed(0)
    return [nn.Linear(32, width, bias=bias) for width in (48, 16, 16)]


@pytest.mark.parametrize("bias", [True, False])
def test_joined_layers_give_their_outputs_side_by_side(bias) -> None:
    plain, x = layers(bias), torch.randn(5, 32)
    expected = torch.cat([layer(x) for layer in plain], dim=-1)
    torch.testing.assert_close(join(plain)(x), expected)


def test_joined_layers_share_one_memory() -> None:
    plain = layers(bias=True)
    joined = join(plain)
    memory = {layer.weight.untyped_storage().data_ptr() for layer in (*plain, joined)}
    assert len(memory) == 1
    assert joined.weight.untyped_storage().nbytes() == 80 * 32 * 4


class Packed(nn.Linear):
    """A layer of another kind, as those of packed weights are."""


def test_layers_of_another_kind_are_called_one_after_the_other() -> None:
    packed = [Packed(8, 4), Packed(8, 2)]
    joined, x = join(packed), torch.randn(3, 8)
    assert isinstance(joined, SideBySide)
    assert torch.equal(joined(x), torch.cat([layer(x) for layer in packed], dim=-1))
    assert join(packed[:1]) is packed[0]


def test_a_quantised_row_keeps_three_bits_of_every_number_near_its_largest() -> None:
    x = torch.randn(6, 64) * torch.tensor([1e-4, 1, 3, 1e4, 0, 1])[:, None]
    small, scale = quantise(x)
    assert small.dtype == torch.float8_e4m3fn
    assert (small.float() * scale - x).abs().div(x.abs().amax(-1, keepdim=True).clamp(min=1e-9)).max() < 1 / 16


@pytest.mark.parametrize("bias", [True, False])
def test_an_8_bit_product_is_close_to_the_plain_one(bias) -> None:
    torch.manual_seed(0)
    plain, x = nn.Linear(256, 64, bias=bias), torch.randn(40, 256)
    expected = plain(x)
    assert ((Fp8Linear(plain)(x) - expected).norm() / expected.norm()).item() < 0.05


def test_an_8_bit_row_does_not_depend_on_the_rows_beside_it() -> None:
    torch.manual_seed(0)
    product, x = Fp8Linear(nn.Linear(64, 32)), torch.randn(8, 64)
    others = torch.cat([x[:1], 100 * torch.randn(7, 64)])
    assert torch.equal(product(x)[0], product(others)[0])


def test_an_8_bit_engine_answers_and_lets_go_of_the_wide_weights(oracle) -> None:
    settings = EngineSettings(dtype="float32", quantize="fp8")
    model = load_model(str(checkpoint()), settings)
    assert sum(p.numel() for p in model.network.model.language_model.layers.parameters()) == 0
    assert model.decoder.blocks[0].qkv.weight.dtype == torch.float8_e4m3fn
    answers = list(Engine(model, settings).generate(oracle.sample(q) for q in mixed_questions()))
    assert all(a.status == "ok" for a in answers)
