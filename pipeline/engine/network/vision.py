"""The vision tower: from uint8 tiles to the features that replace an image's tokens, once a sample."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import LlavaNextForConditionalGeneration

from pipeline.engine.kernels.device import to_device
from pipeline.engine.network.block import DETERMINISTIC
from pipeline.engine.network.features import feature_index
from pipeline.engine.network.selection import class_attention, kept_patches
from pipeline.preprocess.geometry import Anyres, num_image_tokens
from pipeline.preprocess.pixels import PixelScale
from pipeline.weights.network import feature_layers
from schemas.errors import Refused
from schemas.sample import Sample, Size


def normalise(tiles: Tensor, scale: PixelScale) -> Tensor:
    """Convert (n, tile, tile, 3) uint8 to (n, 3, tile, tile) float32, bit-equal to transformers' torchvision processor.

    That processor folds its rescaling by 1/255 into mean and std; the order of roundings here is the same.
    """
    pixels = tiles.permute(0, 3, 1, 2).float()
    if scale.mean is None or scale.std is None:
        return pixels if scale.factor is None else pixels.mul_(scale.factor)
    folded = 1.0 if scale.factor is None else 1.0 / scale.factor  # not 255: the processor divides by its stored factor
    # copied so that the host need not wait for what the device was given before
    shift = to_device(torch.tensor(scale.mean) * folded, tiles.device)[:, None, None]
    width = to_device(torch.tensor(scale.std) * folded, tiles.device)[:, None, None]
    return pixels.sub_(shift).div_(width)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Call:
    """Results of a call of the tower: (patches, width), and (tiles, first and last layer, patches) where asked for."""

    features: Tensor
    attention: Tensor


class Vision:
    """transformers' tower and projector, run up to the last layer whose features the checkpoint takes."""

    def __init__(
        self, network: LlavaNextForConditionalGeneration, scale: PixelScale, image_tokens: float = 1.0
    ) -> None:
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
            share=image_tokens,
        )
        if image_tokens < 1 and not (self._skips_class_token and self._layers):
            raise Refused(f"image_tokens needs a tower with a class token, {config.vision_config.model_type} has none")

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
        patches = torch.cat([*(call.features for call in calls), self._newline[None].to(calls[0].features.dtype)])
        if self.anyres.share < 1:
            index = self._kept(samples, torch.cat([call.attention for call in calls]))
            lengths = [sum(num_image_tokens(size, self.anyres) for size in sample.image_sizes) for sample in samples]
        else:
            of_all, lengths = self._index(samples, newline=len(patches) - 1)
            index = to_device(of_all, patches.device)
        return list(patches.index_select(0, index).split(lengths))

    def _kept(self, samples: Sequence[Sample], attention: Tensor) -> Tensor:
        """Return the index of each kept patch, from the class tokens' attention, (tiles, first and last, patches)."""
        parts, first_tile = [], 0
        for sample in samples:
            for size, num_tiles in zip(sample.image_sizes, sample.tiles_per_image, strict=True):
                first, last = attention[first_tile : first_tile + num_tiles].unbind(1)
                parts.append(kept_patches(first, last, size, self.anyres) + first_tile * attention.shape[2])
                first_tile += num_tiles
        return torch.cat(parts)

    def _call(self, tiles: np.ndarray[Any, Any], tiles_per_call: int) -> "_Call":
        """Run one call of the tower."""
        missing = tiles_per_call - len(tiles)
        full = np.concatenate([tiles, np.zeros((missing, *tiles.shape[1:]), np.uint8)]) if missing else tiles
        full = np.ascontiguousarray(full)  # one memory layout for all: a convolution rounds differently in another
        device = self._newline.device
        pixels = normalise(to_device(full, device), self._scale).to(self._newline.dtype)
        if device.type != "cpu":
            return self._features(pixels)
        calls = [self._features(tile) for tile in pixels.split(1)]
        return _Call(
            features=torch.cat([call.features for call in calls]),
            attention=torch.cat([call.attention for call in calls]),
        )

    def _features(self, pixels: Tensor) -> "_Call":
        """Run the tower over some tiles.

        On a CPU this runs one tile at a time: a BLAS may round the last rows of a product in another way than the
        others, and 577 rows a tile are a multiple of no block.
        """
        states, attention = self._states(pixels)
        features: Tensor = self._projector(states[:, 1:] if self._skips_class_token else states)
        return _Call(features=features.flatten(0, 1), attention=attention)

    def _states(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the hidden states after the layers that are taken, side by side: (tiles, patches, width); and what the
        class token attends to in the first and the last layer, where that is asked for."""
        state: Tensor = self._tower.embeddings(pixels)
        if hasattr(self._tower, "pre_layrnorm"):  # CLIP has it, SigLIP has not
            state = self._tower.pre_layrnorm(state)
        states, attention = {0: state}, [state.new_zeros(len(state), 0, self.anyres.patches_per_side**2)]
        for i, layer in enumerate(self._layers, start=1):
            if self.anyres.share < 1 and i in (1, len(self._layers)):
                attention.append(class_attention(layer, state)[:, None])
            state = layer(state, attention_mask=None)
            if i in self._taken:
                states[i] = state
        if self.anyres.share < 1 and len(self._layers) == 1:
            attention.append(attention[-1])
        return torch.cat([states[i] for i in self._taken], dim=-1), torch.cat(attention, dim=1)

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
