"""The order of an image's features, against transformers' own packing."""

import random

import pytest
import torch
from transformers import LlavaNextForConditionalGeneration

from demo.checkpoint import Shape, build_config
from pipeline.engine.network.features import feature_index
from pipeline.engine.network.vision import Vision, normalise
from pipeline.preprocess.geometry import num_image_tokens, num_tiles
from pipeline.preprocess.pixels import PixelScale
from schemas.sample import Size
from tests.engine.oracle import mixed_questions


def sizes() -> list[tuple[int, int]]:
    rng = random.Random(0)
    drawn = [(rng.randint(1, 2000), rng.randint(1, 2000)) for _ in range(150)]
    return [(1, 1), (1, 1000), (1000, 1), (3000, 40), (40, 3000), (336, 336), (672, 672), (337, 671), *drawn]


def test_features_stand_in_the_order_of_transformers(oracle) -> None:
    network, anyres = oracle.model.network.model, oracle.model.vision.anyres
    for width, height in sizes():
        size = Size(width, height)
        tiles, per_tile = num_tiles(size, anyres), anyres.patches_per_side**2
        numbers = torch.arange(tiles * per_tile, dtype=torch.float32).reshape(tiles, per_tile, 1)
        packed, _ = network.pack_image_features(
            [numbers], torch.tensor([[height, width]]), "default", image_newline=torch.tensor([-1.0])
        )
        assert feature_index(size, anyres, newline=-1).tolist() == packed[0][:, 0].int().tolist()
        assert len(packed[0]) == num_image_tokens(size, anyres)


@pytest.fixture(scope="module", params=[-2, -1, 1, [-2, 1]], ids=str)
def by_layer(request):
    """A network that takes its features from this layer or from these."""
    config = build_config(Shape(feature_layer=request.param), vocabulary=300)
    torch.manual_seed(0)
    return LlavaNextForConditionalGeneration(config).eval()


@pytest.mark.parametrize("tiles_per_call", [1, 4, 64])
def test_features_are_those_of_transformers_whatever_layer_and_call(by_layer, oracle, tiles_per_call) -> None:
    scale = PixelScale(factor=1 / 255, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25))
    samples = [oracle.sample(question) for question in mixed_questions()]
    found = Vision(by_layer, scale).encode(samples, tiles_per_call)
    for sample, features in zip(samples, found, strict=True):
        pixels = normalise(torch.from_numpy(sample.tiles), scale)
        size = torch.tensor([[sample.image_sizes[0].height, sample.image_sizes[0].width]])
        (expected,) = by_layer.get_image_features(pixel_values=pixels, image_sizes=size).pooler_output
        torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_tile_has_the_same_features_beside_any_others(oracle, dtype) -> None:
    network = oracle.model.network.model
    samples = [oracle.sample(question) for question in mixed_questions()]
    scale = PixelScale(factor=1 / 255, mean=(0.5,) * 3, std=(0.3,) * 3)
    vision = Vision(LlavaNextForConditionalGeneration(network.config).to(dtype).eval(), scale)
    together = vision.encode(samples, 8)
    for sample, features in zip(samples, together, strict=True):
        assert torch.equal(vision.encode([sample], 8)[0], features)
