"""From uint8 tiles to the features that take an image's place in a prompt, once a sample."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline.engine.model import LoadedModel
from schemas.sample import Sample, Size, Tiles

Features = tuple[Tensor, ...]  # of one sample: (num_image_tokens, width) for each of its images


@dataclass(frozen=True, slots=True, kw_only=True)
class _Image:
    tiles: Tiles
    size: Size


def normalise(tiles: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(n, tile, tile, 3) uint8 to (n, 3, tile, tile) float32, bit-equal to transformers' torchvision processor.

    That processor folds its rescaling by 1/255 into mean and std; the order of roundings here is the same.
    """
    scale = 1.0 / (1 / 255)  # not 255: the processor divides by its stored factor
    shift = (torch.tensor(mean) * scale).to(tiles.device)[:, None, None]
    spread = (torch.tensor(std) * scale).to(tiles.device)[:, None, None]
    return tiles.permute(0, 3, 1, 2).float().sub_(shift).div_(spread)


@torch.inference_mode()
def sample_features(model: LoadedModel, samples: Sequence[Sample], tiles_per_call: int) -> list[Features]:
    """The features of every sample's images; a sample without images has none."""
    images = [image for sample in samples for image in _images_of(sample)]
    features = [feature for call in _calls(images, tiles_per_call) for feature in _run(model, call)]
    assert len(features) == len(images)
    remaining = iter(features)
    return [tuple(next(remaining) for _ in sample.image_sizes) for sample in samples]


def _images_of(sample: Sample) -> Iterator[_Image]:
    first = 0
    for size, num_tiles in zip(sample.image_sizes, sample.tiles_per_image, strict=True):
        yield _Image(tiles=sample.tiles[first : first + num_tiles], size=size)
        first += num_tiles


def _calls(images: Sequence[_Image], tiles_per_call: int) -> Iterator[list[_Image]]:
    """Whole images in order, as many as fit a call; one image never spans two."""
    call: list[_Image] = []
    for image in images:
        if call and sum(len(i.tiles) for i in call) + len(image.tiles) > tiles_per_call:
            yield call
            call = []
        call.append(image)
    if call:
        yield call


def _run(model: LoadedModel, images: Sequence[_Image]) -> Features:
    """One pass through tower and projector. The tiles are flat: no image is padded to another's number of tiles."""
    tiles = torch.from_numpy(np.concatenate([image.tiles for image in images])).to(model.device)
    pixels = normalise(tiles, model.image_mean, model.image_std).to(model.dtype)
    sizes = torch.tensor([(image.size.height, image.size.width) for image in images])  # read on the CPU, one by one
    return tuple(model.network.get_image_features(pixel_values=pixels, image_sizes=sizes).pooler_output)
