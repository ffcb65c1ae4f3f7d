"""The vision tower: from uint8 tiles to the features that replace an image's tokens, once a sample."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import LlavaNextForConditionalGeneration

from pipeline.engine.kernels.device import to_device
from pipeline.engine.network.block import DETERMINISTIC
from pipeline.engine.network.features import feature_index
from pipeline.preprocess.geometry import Anyres
from pipeline.preprocess.pixels import PixelScale
from pipeline.weights.network import feature_layers
from schemas.sample import Sample, Size


def normalise(tiles: Tensor, scale: PixelScale) -> Tensor:
    """Convert (n, tile, tile, 3) uint8 to (n, 3, tile, tile) float32, bit-equal to transformers' torchvision processor.

    That processor folds its rescaling by 1/255 into mean and std; the order of roundings here is the same.
    """
    pixels = tiles.permute(0, 3, 1, 2).float()
    if scale.mean is None or scale.std is None:
        return pixels if scale.factor is None else pixels.mul_(scale.factor)
    folded = 1.0 if scale.factor is None else 1.0 / scale.factor  # not 255: the processor divides by its stored factor
    shift = (torch.tensor(scale.mean) * folded).to(tiles.device)[:, None, None]
    width = (torch.tensor(scale.std) * folded).to(tiles.device)[:, None, None]
    return pixels.sub_(shift).div_(width)


class Vision:
    """transformers' tower and projector, run up to the last layer whose features the checkpoint takes."""

    def __init__(self, network: LlavaNextForConditionalGeneration, scale: PixelScale) -> None:
        config: Any = network.config
        model = network.model
        self._tower: Any = model.vision_tower
        self._projector = model.multi_modal_projector
        self._newline = model.image_newline
        self._scale = scale
        self._skips_class_token = config.vision_feature_select_strategy == "default"
        self._taken = feature_layers(config)
        self._layers = self._tower.encoder.layers[: max(self._taken)]
        self.anyres = Anyres(
            tile=config.vision_config.image_size,
            patch=config.vision_config.patch_size,
            grids=tuple(Size(width, height) for height, width in config.image_grid_pinpoints or ()),
        )

    def compile_layers(self) -> None:
        """Compile the layers: one compilation serves all of them, as every call has the same shape."""
        for layer in self._layers:
            layer.compile(options=DETERMINISTIC)

    def encode(self, samples: Sequence[Sample], tiles_per_call: int) -> list[Tensor]:
        """Return the features of each sample's images, (num_image_tokens, width).

        Every call of the tower has `tiles_per_call` tiles, the last one filled up with black ones: a tile's features
        depend on nothing but the tile.
        """
        tiles = np.concatenate([sample.tiles for sample in samples if len(sample.tiles)])
        starts = range(0, len(tiles), tiles_per_call)
        calls = [self._call(tiles[i : i + tiles_per_call], tiles_per_call) for i in starts]
        patches = torch.cat([*calls, self._newline[None].to(calls[0].dtype)])
        index, lengths = self._index(samples, newline=len(patches) - 1)
        features = patches.index_select(0, to_device(index, patches.device))
        return list(features.split(lengths))

    def _call(self, tiles: np.ndarray[Any, Any], tiles_per_call: int) -> Tensor:
        """Return the features of all patches of one call, (patches, width)."""
        missing = tiles_per_call - len(tiles)
        full = np.concatenate([tiles, np.zeros((missing, *tiles.shape[1:]), np.uint8)]) if missing else tiles
        full = np.ascontiguousarray(full)  # one memory layout for all: a convolution rounds differently in another
        device = self._newline.device
        pixels = normalise(to_device(full, device), self._scale).to(self._newline.dtype)
        if device.type == "cpu":
            return torch.cat([self._features(tile) for tile in pixels.split(1)])
        return self._features(pixels)

    def _features(self, pixels: Tensor) -> Tensor:
        """Return the features of all patches of some tiles, (patches, width).

        On a CPU this runs one tile at a time: a BLAS may round the last rows of a product in another way than the
        others, and 577 rows a tile are a multiple of no block.
        """
        states = self._states(pixels)
        features: Tensor = self._projector(states[:, 1:] if self._skips_class_token else states)
        return features.flatten(0, 1)

    def _states(self, pixels: Tensor) -> Tensor:
        """Return the hidden states after the layers that are taken, side by side: (tiles, patches, width)."""
        state: Tensor = self._tower.embeddings(pixels)
        if hasattr(self._tower, "pre_layrnorm"):  # CLIP has it, SigLIP has not
            state = self._tower.pre_layrnorm(state)
        states = {0: state}
        for i, layer in enumerate(self._layers, start=1):
            state = layer(state, attention_mask=None)
            if i in self._taken:
                states[i] = state
        return torch.cat([states[i] for i in self._taken], dim=-1)

    def _index(self, samples: Sequence[Sample], newline: int) -> tuple[np.ndarray[Any, Any], list[int]]:
        per_tile = self.anyres.patches_per_side**2
        parts, lengths, first_tile = [], [], 0
        for sample in samples:
            num_tokens = 0
            for size, num_tiles in zip(sample.image_sizes, sample.tiles_per_image, strict=True):
                index = feature_index(size, self.anyres, newline=newline - first_tile * per_tile)
                parts.append(index + first_tile * per_tile)
                num_tokens += len(index)
                first_tile += num_tiles
            lengths.append(num_tokens)
        return np.concatenate(parts), lengths
