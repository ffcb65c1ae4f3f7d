"""Normalising tiles on the device, bit for bit as transformers' torchvision processor does it on the CPU."""

import pytest
import torch
from transformers import AutoProcessor

from pipeline.engine.network.vision import normalise
from pipeline.preprocess.pixels import PixelScale, read_scale
from tests.engine.oracle import picture
from tests.tiny import checkpoint

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
CLIP = PixelScale(factor=1 / 255, mean=MEAN, std=STD)


def test_tiles_become_normalised_channels() -> None:
    levels = torch.arange(256, dtype=torch.uint8)[:, None, None, None].expand(256, 2, 2, 3)
    pixels = normalise(levels, CLIP)
    expected = (torch.arange(256)[:, None] / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
    assert pixels.shape == (256, 3, 2, 2)
    torch.testing.assert_close(pixels[:, :, 0, 0], expected)


def test_levels_of_different_channels_stay_apart() -> None:
    tile = torch.tensor([0, 128, 255], dtype=torch.uint8).expand(1, 2, 2, 3)
    plain = PixelScale(factor=1 / 255, mean=(0.0,) * 3, std=(1.0,) * 3)
    assert normalise(tile, plain)[0, :, 0, 0].tolist() == pytest.approx([0, 128 / 255, 1])


def test_normalised_tiles_are_bit_equal_to_the_torchvision_processor() -> None:
    pytest.importorskip("torchvision")
    processor = AutoProcessor.from_pretrained(checkpoint(), backend="torchvision").image_processor
    image = picture((100, 80))
    raw = processor(image, do_rescale=False, do_normalize=False, return_tensors="pt")["pixel_values"][0]
    tiles = raw.permute(0, 2, 3, 1).to(torch.uint8)
    expected = processor(image, return_tensors="pt")["pixel_values"][0]
    assert torch.equal(normalise(tiles, read_scale(processor)), expected)
