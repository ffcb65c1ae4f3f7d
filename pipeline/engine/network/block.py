"""One layer of the text network, the same for mistral, llama and qwen2, and how it runs around attention."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from pipeline.engine.kernels.interface import Fused
from pipeline.engine.kernels.linear import Fp8Linear, join

# Kernels are chosen by rule: a measurement of which is the fastest would come out differently in every process.
DETERMINISTIC: dict[str, str | int | bool | Callable[..., Any]] = {"deterministic": True}


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderShape:
    """The numbers in which the backbones differ."""

    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    intermediate: int
    context: int
    window: int | None  # tokens that attention reaches back, where a checkpoint limits them


class RmsNorm(nn.Module):
    """Compute as transformers does: mean and root in float32, the weight in the network's type."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        theirs: Any = norm
        self.weight: Tensor = theirs.weight
        self.epsilon = float(theirs.variance_epsilon)

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.epsilon)
        return self.weight * wide.to(x.dtype)


class Block(nn.Module):
    """One layer, cut at attention: what runs before and after it works token by token, on (tokens, hidden).

    Flat, so that one compilation serves prefill and decode, whatever the number of sequences.
    """

    def __init__(self, layer: nn.Module, shape: DecoderShape) -> None:
        super().__init__()
        theirs: Any = layer
        attention, mlp = theirs.self_attn, theirs.mlp
        self.heads, self.kv_heads, self.head_dim = shape.heads, shape.kv_heads, shape.head_dim
        self.before_attention = RmsNorm(theirs.input_layernorm)
        self.before_mlp = RmsNorm(theirs.post_attention_layernorm)
        self.qkv = join([attention.q_proj, attention.k_proj, attention.v_proj])
        self.out = join([attention.o_proj])
        self.gate_up = join([mlp.gate_proj, mlp.up_proj])
        self.down = join([mlp.down_proj])

    def project(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Compute queries, keys and values, (tokens, heads, head_dim), queries and keys rotated by position."""
        return self.rotate(self.qkv(self.before_attention(x)), cos, sin)

    def rotate(self, projected: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Split the product for queries, keys and values, (tokens, all heads side by side), and rotate as `project`."""
        heads = projected.view(len(projected), -1, self.head_dim)
        queries, keys, values = heads.split([self.heads, self.kv_heads, self.kv_heads], dim=1)
        return _rotate(queries, cos, sin), _rotate(keys, cos, sin), values

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """Run the layer after attention: output product and feed-forward, both added to the residual `x`."""
        x = x + self.out(attended.flatten(1))
        out: Tensor = x + self.down(self.feed(x))
        return out

    def feed(self, x: Tensor) -> Tensor:
        """Compute the input of the feed-forward's last product, (tokens, intermediate)."""
        return apply_gates(self.gate_up(self.before_mlp(x)))

    def widen(self, x: Tensor, attended: Tensor) -> tuple[Tensor, Tensor]:
        """Run `finish` up to gates and ups, (tokens, 2 * intermediate); return the residual before them."""
        x = x + self.out(attended.flatten(1))
        return x, self.gate_up(self.before_mlp(x))

    def narrow(self, x: Tensor, fed: Tensor, scale: Tensor) -> Tensor:
        """Run the rest of `finish` from the quantised input of the last product."""
        down = self.down
        assert isinstance(down, Fp8Linear)
        return x + down.multiply(fed, scale, x.dtype)

    def quantise(self) -> None:
        """Replace the products by 8-bit ones."""
        for name in ("qkv", "out", "gate_up", "down"):
            setattr(self, name, Fp8Linear(getattr(self, name)))

    @property
    def is_plain(self) -> bool:
        """Tell whether products can be added to the residual in place: their weights are plain, without a bias.

        bitsandbytes' layers are subclasses of Linear, and not plain.
        """
        return all(type(one) is nn.Linear and one.bias is None for one in (self.out, self.gate_up, self.down))


class LayerRunner:
    """Runs blocks before attention and after it: compiled or not, by fused kernels where there are any.

    On a GPU a layer adds to the residual in place, which saves a copy of it: `x` may be changed.
    """

    def __init__(self) -> None:
        self._project: Callable[..., tuple[Tensor, Tensor, Tensor]] = Block.project
        self._rotate: Callable[..., tuple[Tensor, Tensor, Tensor]] = Block.rotate
        self._widen: Callable[..., tuple[Tensor, Tensor]] = Block.widen
        self._narrow: Callable[..., Tensor] = Block.narrow
        self._finish: Callable[..., Tensor] = Block.finish
        self._feed: Callable[..., Tensor] = Block.feed
        self._norm: Callable[..., Tensor] = RmsNorm.forward

    def compile(self, num_devices: int) -> None:
        """Compile both parts, once for all lengths and all layers of a device, and alike in every process."""
        limit = 8 * num_devices  # as torch has it for one device
        torch._dynamo.config.recompile_limit = max(limit, torch._dynamo.config.recompile_limit)
        for name in ("_project", "_rotate", "_widen", "_narrow", "_finish", "_feed", "_norm"):
            setattr(self, name, torch.compile(getattr(self, name), dynamic=True, options=DETERMINISTIC))

    def project(
        self, block: Block, x: Tensor, cos: Tensor, sin: Tensor, fused: Fused | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Run `Block.project`."""
        qkv = block.qkv
        if fused is None or type(qkv) is not nn.Linear:
            return self._project(block, x, cos, sin)
        product = fused.product(self._norm(block.before_attention, x), qkv.weight, qkv.bias)
        return self._rotate(block, product, cos, sin)

    def finish(self, block: Block, x: Tensor, attended: Tensor, fused: Fused | None) -> Tensor:
        """Run `Block.finish`."""
        if not x.is_cuda:
            return self._finish(block, x, attended)
        if isinstance(block.down, Fp8Linear):
            from pipeline.engine.kernels.triton_kernels import (
                gate_and_quantise,  # here, as triton comes with torch for GPUs alone
            )

            x, states = self._widen(block, x, attended)
            return self._narrow(block, x, *gate_and_quantise(states))
        if not block.is_plain:
            return self._finish(block, x, attended)
        out, gate_up, down = _weight(block.out), _weight(block.gate_up), _weight(block.down)
        if fused is None:
            x.addmm_(attended.flatten(1), out.t())
            return x.addmm_(self._feed(block, x), down.t())
        fused.add_product(x, attended.flatten(1), out)
        fused.add_product(x, fused.gated_product(self._norm(block.before_mlp, x), gate_up), down)
        return x


def apply_gates(states: Tensor) -> Tensor:
    """Compute silu(gate) * up, (tokens, intermediate), of both side by side, (tokens, 2 * intermediate)."""
    gate, up = states.chunk(2, dim=-1)
    return silu(gate) * up


def _weight(layer: nn.Module) -> Tensor:
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate (tokens, heads, head_dim) by the angles of the tokens' positions."""
    first, second = x.chunk(2, dim=-1)
    return x * cos[:, None] + torch.cat((-second, first), dim=-1) * sin[:, None]
