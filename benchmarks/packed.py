"""Layers in bitsandbytes' 8 and 4 bits, made of weights on a device: what a checkpoint's become while it is loaded."""

import logging
from types import ModuleType
from typing import Any

import torch
from torch import nn

from schemas.engine import EngineSettings

_OUTLIER = 6.0  # columns of activations with a value above it are computed in 16 bits


def packed(layer: nn.Module, settings: EngineSettings) -> nn.Module:
    """Quantise a layer's products as the settings ask bitsandbytes to, on their device; leave others as they are."""
    if settings.quantize not in ("8bit", "4bit"):
        return layer
    for name, linear in list(layer.named_modules()):
        if type(linear) is nn.Linear:
            found = _in_8_bits(linear) if settings.quantize == "8bit" else _in_4_bits(linear, settings)
            found.bias = linear.bias
            layer.set_submodule(name, found.requires_grad_(False))
    return layer


def mark_packed(network: nn.Module, settings: EngineSettings) -> None:
    """Tell of a network what a loaded one tells of itself."""
    theirs: Any = network
    theirs.is_quantized = settings.quantize in ("8bit", "4bit")
    theirs.is_loaded_in_8bit = settings.quantize == "8bit"
    if theirs.is_loaded_in_8bit:  # of every product it would say that it rounds to float16
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def _in_8_bits(linear: nn.Linear) -> nn.Linear:
    bnb = _bitsandbytes()
    made: nn.Linear = bnb.nn.Linear8bitLt(
        linear.in_features,
        linear.out_features,
        bias=linear.bias is not None,
        has_fp16_weights=False,
        threshold=_OUTLIER,
        device="meta",
    )
    codes, scales, _ = bnb.functional.int8_vectorwise_quant(linear.weight.to(torch.float16))
    made.weight = bnb.nn.Int8Params(codes, requires_grad=False, has_fp16_weights=False, CB=codes, SCB=scales)
    return made


def _in_4_bits(linear: nn.Linear, settings: EngineSettings) -> nn.Linear:
    bnb = _bitsandbytes()
    made: nn.Linear = bnb.nn.Linear4bit(
        linear.in_features,
        linear.out_features,
        bias=linear.bias is not None,
        compute_dtype=getattr(torch, settings.dtype),
        compress_statistics=False,
        quant_type="nf4",
        device="meta",
    )
    weight = bnb.nn.Params4bit(
        linear.weight.data, requires_grad=False, compress_statistics=False, quant_type="nf4", module=made
    )
    made.weight = weight.to(linear.weight.device)
    return made


def _bitsandbytes() -> ModuleType:
    import bitsandbytes  # here, as only these settings need the package; it states few of its types

    return bitsandbytes
