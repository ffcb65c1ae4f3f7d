"""How much arithmetic a network's work is, and how much its device could do: floating-point operations."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedConfig

from pipeline.engine.kernels.linear import quantise, scaled_product
from pipeline.engine.network.block import DecoderShape


@dataclass(frozen=True, slots=True, kw_only=True)
class Arithmetic:
    """Operations of a network's parts; a multiplication and its addition are two. Norms and the like are left out."""

    tile: float  # vision tower and projector
    token: float  # the products of all layers, but for what follows the keys and values of the last
    last: float  # that: only tokens that another one is drawn after need it
    pair: float  # attention of one token to one place of its slot
    head: float  # the vocabulary's scores

    def teraflop(self, *, tiles: int, tokens: int, pairs: int, drawn: int) -> float:
        """What so much work comes to, in 10^12 operations."""
        whole = tiles * self.tile + tokens * self.token + pairs * self.pair + drawn * (self.last + self.head)
        return whole / 1e12


def arithmetic(config: PreTrainedConfig, shape: DecoderShape, num_tokens: int) -> Arithmetic:
    """The operations of a LLaVA-NeXT config whose text network has this shape and draws among so many tokens."""
    whole: Any = config
    vision, taken = whole.vision_config, whole.vision_feature_layer
    patches, width = (vision.image_size // vision.patch_size) ** 2 + 1, vision.hidden_size
    layer = patches * 2 * (4 * width**2 + 2 * width * vision.intermediate_size) + 4 * patches**2 * width
    depth = vision.num_hidden_layers + 1
    layers = [i % depth for i in ([taken] if isinstance(taken, int) else taken)]
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
    """Operations per second of a large product alone: what the device does in this precision at best."""
    size = 8192 if device.type == "cuda" else 512
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    if not fp8:
        return 2 * size**3 / _seconds(lambda: a @ b, device)
    (left, scale), (right, other) = quantise(a), quantise(b)
    turned = other.view(1, -1)
    return 2 * size**3 / _seconds(lambda: scaled_product(left, scale, right, turned, dtype), device)


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
