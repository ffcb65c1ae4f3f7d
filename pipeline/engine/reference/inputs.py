"""Samples as transformers' network takes them: a left-padded batch, its tiles normalised as its processor does it."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pipeline.engine.network.vision import normalise
from pipeline.preprocess.pixels import PixelScale
from schemas.sample import Prompt, Sample

Asked = tuple[Sample, Prompt]


def batch_inputs(
    asked: Sequence[Asked], scale: PixelScale, *, pad_token_id: int, dtype: torch.dtype, device: torch.device
) -> dict[str, Any]:
    """Return what `generate` takes for these prompts, shorter ones padded on the left; no pixels where none has any."""
    longest = max(len(prompt.token_ids) for _, prompt in asked)
    ids = torch.full((len(asked), longest), pad_token_id)
    mask = torch.zeros_like(ids)
    for row, (_, prompt) in enumerate(asked):
        ids[row, longest - len(prompt.token_ids) :] = torch.from_numpy(prompt.token_ids.copy()).long()
        mask[row, longest - len(prompt.token_ids) :] = 1
    inputs: dict[str, Any] = {"input_ids": ids.to(device), "attention_mask": mask.to(device)}
    images = [image for sample, _ in asked for image in _images_of(sample, scale)]
    if not images:
        return inputs
    most = max(map(len, images))
    pixels = torch.zeros((len(images), most, *images[0].shape[1:]))
    for number, image in enumerate(images):
        pixels[number, : len(image)] = image
    sizes = [(size.height, size.width) for sample, _ in asked for size in sample.image_sizes]
    return {**inputs, "pixel_values": pixels.to(device, dtype), "image_sizes": torch.tensor(sizes, device=device)}


def _images_of(sample: Sample, scale: PixelScale) -> list[Tensor]:
    """Return the normalised tiles of each image, (tiles, 3, tile, tile)."""
    if not len(sample.tiles):
        return []
    tiles = normalise(torch.from_numpy(sample.tiles.copy()), scale)
    return list(tiles.split(list(sample.tiles_per_image)))
