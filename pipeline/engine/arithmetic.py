"""Floating-point operations: count those of a network's work, and measure those that its device could do."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedConfig

from pipeline.engine.kernels.linear import quantise, scaled_product
from pipeline.engine.network.block import DecoderShape
from pipeline.weights.network import feature_layers


@dataclass(frozen=True, slots=True, kw_only=True)
class Arithmetic:
    """Operations of a network's parts; a multiplication and its addition are two. Norms and the like are left out."""

    tile: float  # vision tower and projector
    token: float  # the products of all layers, but for what follows the keys and values of the last
    last: float  # that: only tokens that another one is sampled after need it
    pair: float  # attention of one token to another
    head: float  # scores of the vocabulary

    def teraflop(self, *, tiles: int, tokens: int, pairs: int, sampled: int) -> float:
        """Sum up so much work, in 10^12 operations."""
        whole = tiles * self.tile + tokens * self.token + pairs * self.pair + sampled * (self.last + self.head)
        return whole / 1e12


def arithmetic(config: PreTrainedConfig, shape: DecoderShape, num_tokens: int) -> Arithmetic:
    """Count the operations of a LLaVA-NeXT config; `shape` is its text network's, `num_tokens` its vocabulary's."""
    whole: Any = config
    vision, layers = whole.vision_config, feature_layers(config)
    patches, width = (vision.image_size // vision.patch_size) ** 2 + 1, vision.hidden_size
    layer = patches * 2 * (4 * width**2 + 2 * width * vision.intermediate_size) + 4 * patches**2 * width
    projector = patches * 2 * (width * len(layers) * shape.hidden + shape.hidden**2)
    heads = shape.heads * shape.head_dim
    before = shape.hidden * (heads + 2 * shape.kv_heads * shape.head_dim)
    behind = shape.hidden * (heads + 3 * shape.intermediate)
    return Arithmetic(
        tile=max(layers) * layer + projector,
        token=2 * (shape.layers * (before + behind) - behind),
        last=2 * behind,
        pair=4 * shape.layers * heads,
        head=2 * shape.hidden * num_tokens,
    )


def product_rate(device: torch.device, dtype: torch.dtype, *, fp8: bool) -> float:
    """Measure the operations per second of a large product: the most that the device does in this precision."""
    size = 8192 if device.type == "cuda" else 512
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    if not fp8:
        return 2 * size**3 / _seconds(lambda: a @ b, device)
    (left, left_scale), (right, right_scale) = quantise(a), quantise(b)
    across = right_scale.view(1, -1)
    return 2 * size**3 / _seconds(lambda: scaled_product(left, left_scale, right, across, dtype), device)


def _seconds(run: Callable[[], object], device: torch.device, times: int = 10) -> float:
    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    run()
    wait()
    began = time.perf_counter()
    for _ in range(times):
        run()
    wait()
    return (time.perf_counter() - began) / times
