"""Selection: which patches of an image are kept where it has fewer tokens, by what the tower's class token attends to.

After HiRED (arXiv 2408.10945): the base tile's patches that its last layer attends to most; of the grid's tiles as many
each as the first layer's attention over that part of the base tile says. Nothing in it depends on the question.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.engine.kernels.device import to_device
from pipeline.engine.network.features import shown_patches
from pipeline.preprocess.geometry import Anyres, kept_tokens, scaled_size, select_grid
from schemas.sample import Size

Ints = npt.NDArray[np.int64]


def class_attention(layer: Any, state: Tensor) -> Tensor:  # noqa: ANN401  transformers' layer of CLIP
    """Return how much a layer's class token attends to each patch, all heads together: (tiles, patches), float32.

    `state` is what the layer is given.
    """
    attention = layer.self_attn
    normed = layer.layer_norm1(state)
    heads, width = attention.num_heads, attention.head_dim
    query = attention.q_proj(normed[:, :1]).view(len(state), 1, heads, width).transpose(1, 2).float()
    keys = attention.k_proj(normed).view(*state.shape[:2], heads, width).transpose(1, 2).float()
    weights: Tensor = ((query * width**-0.5) @ keys.transpose(2, 3)).softmax(-1)
    return weights[:, :, 0, 1:].sum(1)


def kept_patches(first: Tensor, last: Tensor, image: Size, anyres: Anyres) -> Tensor:
    """Return the index of each kept patch among those of the image's tiles: the base's, then the grid's, in reading
    order.

    `first` and `last` are the class token's attention in the tower's first and last layer, (tiles, patches). How many
    are kept follows from the image's size alone. The tiles of the grid share theirs as parties share seats (by
    Sainte-Lague) for the number of base patches over each, of the half that the first layer attends to most.
    """
    budget, patches = kept_tokens(image, anyres), last.shape[1]
    base = _best(last[0])[: budget.base].sort().values
    shown, tiles = shown_patches(image, anyres)
    if not budget.grid:
        return base
    own = to_device(tiles, last.device)
    votes = torch.zeros(len(first) - 1, dtype=torch.float64, device=last.device)
    over = to_device(tiles_over_base(image, anyres), last.device)[_best(first[0])[: patches // 2]]
    votes.index_add_(0, over, torch.ones_like(over, dtype=torch.float64))
    index = to_device(shown, last.device)
    by_score = _best(last.flatten()[index])
    grouped = by_score[own[by_score].argsort(stable=True)]  # tile by tile, the best of each first
    rank = torch.arange(len(grouped), device=last.device) - to_device(_starts(tiles, len(first) - 1), last.device)
    quotient = votes[own[grouped]] / (2 * rank + 1)
    chosen = grouped[_best(quotient)[: budget.grid]].sort().values
    return torch.cat([base, index[chosen]])


def tiles_over_base(image: Size, anyres: Anyres) -> Ints:
    """Return the tile of the grid that shows the middle of each of the base tile's patches."""
    grid, side = select_grid(image, anyres), anyres.patches_per_side
    scaled = scaled_size(image, grid)
    middles = 2 * np.arange(side, dtype=np.int64) + 1
    across = ((grid.width - scaled.width) // 2 + middles * scaled.width // (2 * side)) // anyres.tile
    down = ((grid.height - scaled.height) // 2 + middles * scaled.height // (2 * side)) // anyres.tile
    return (down[:, None] * (grid.width // anyres.tile) + across).reshape(-1)


def _starts(tiles: Ints, num_tiles: int) -> Ints:
    """Return, for every patch once they are grouped by tile, how many are in the tiles before its own."""
    counts = np.bincount(tiles, minlength=num_tiles)
    return np.repeat(np.cumsum(counts) - counts, counts).astype(np.int64)


def _best(scores: Tensor) -> Tensor:
    """Return the indices of scores, the highest first; of equal ones the first, whatever else is computed."""
    return scores.argsort(descending=True, stable=True)
