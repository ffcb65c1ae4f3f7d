"""The decoder's products: transformers' linear layers joined into one, packed ones called one by one, or fp8."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

LARGEST = torch.finfo(torch.float8_e4m3fn).max


class SideBySide(nn.Module):
    """Layers of one input, called one after the other: for packed weights, which cannot be joined."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([layer(x) for layer in self.layers], dim=-1)


class Fp8Linear(nn.Module):
    """A product in 8 bits: one scale for each output row of the weight, one for each token of the input."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight, scale = quantise(linear.weight)
        self.weight = nn.Buffer(weight)  # (out, in) float8
        self.scale = nn.Buffer(scale.view(1, -1))
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        return self.multiply(*quantise(x), x.dtype)

    def multiply(self, tokens: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
        """Multiply what `quantise` returned, (tokens, in) float8 and a scale a token: (tokens, out) of `dtype`."""
        out = scaled_product(tokens, scale, self.weight, self.scale, dtype)
        return out if self.bias is None else out + self.bias


def quantise(x: Tensor) -> tuple[Tensor, Tensor]:
    """Round (rows, width) to float8 with a float32 scale a row, (rows, 1): x is about their product."""
    largest = x.abs().amax(-1, keepdim=True).float().clamp(min=1e-12)
    scale = largest / LARGEST
    return (x.float() / scale).clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn), scale


def scaled_product(x: Tensor, x_scale: Tensor, weight: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Multiply (tokens, in) with (out, in), each with its scales: (tokens, out)."""
    if x.is_cuda:
        # With a scale a row the kernel returns bfloat16 only.
        return torch._scaled_mm(
            x, weight.t(), scale_a=x_scale, scale_b=scale, out_dtype=torch.bfloat16, use_fast_accum=True
        ).to(dtype)
    return ((x.float() @ weight.float().t()) * x_scale * scale).to(dtype)


def join(layers: Sequence[nn.Module]) -> nn.Module:
    """Make one layer that returns the outputs of all, side by side. Plain ones become views of its weight."""
    if any(type(layer) is not nn.Linear for layer in layers):
        return layers[0] if len(layers) == 1 else SideBySide(layers)
    linears = [layer for layer in layers if isinstance(layer, nn.Linear)]
    if len(linears) == 1:
        return linears[0]
    weight = torch.cat([linear.weight.detach() for linear in linears])
    biases = [linear.bias.detach() for linear in linears if linear.bias is not None]
    assert len(biases) in (0, len(linears))
    bias = torch.cat(biases) if biases else None
    first = 0
    for linear in linears:
        rows = slice(first, first + len(linear.weight))
        linear.weight = _frozen(weight[rows])
        if bias is not None:
            linear.bias = _frozen(bias[rows])
        first = rows.stop
    return _linear(weight, bias)


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    linear.weight = _frozen(weight)
    if bias is not None:
        linear.bias = _frozen(bias)
    return linear


def _frozen(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor, requires_grad=False)
