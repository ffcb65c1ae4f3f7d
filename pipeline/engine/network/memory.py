"""Estimate the memory that a model needs on each card, from its config alone, before anything is loaded."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig

from pipeline.engine.kernels.pages import num_pages
from pipeline.engine.network.block import DecoderShape
from pipeline.engine.network.decoder import decoder_shape
from pipeline.engine.network.kv_cache import CacheShape
from pipeline.weights.network import empty_network, quantization_of
from schemas.engine import EngineSettings, KvCacheDtype
from schemas.errors import Refused

_SPARE_BYTES = 8 * 2**30  # for the vision tower, its features, cached prefixes, the sampler, the allocator's gaps
# Of one prefill on a GPU: enough for prompts to fill it to the last percent, and its products, cut into tiles of 128 by
# 256, are whole waves of 132 processors.
PREFILL_TOKENS = 16896
# Over several devices half of it: a device waits for the first of several in a row, and for the last.
PREFILL_TOKENS_IN_PARTS = 8448
_LONGEST = 4096  # tokens of a sequence by default: the largest picture, a question, a page of text
# Bytes of a quantised weight with its share of the scales: one scale for a row of some thousand, or for 64 of 4 bits.
_PACKED_BYTES = {"fp8": 1.001, "8bit": 1.001, "4bit": 0.5 + 4 / 64}


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes that a model needs. Those of a card are the fullest one's."""

    weights: int  # of all cards
    weights_a_card: int
    sequence: int  # keys and values of the longest sequence, on all cards
    sequence_a_card: int
    computing: int  # on each card, however many sequences there are

    @property
    def least(self) -> int:
        """Return what a card must have free before anything is loaded: enough for one sequence."""
        return self.weights_a_card + self.sequence_a_card + self.computing


def memory_of(config: PreTrainedConfig, settings: EngineSettings) -> Memory:
    """Compute what a model of this config needs on a GPU; raises Refused for a network that the engine cannot run."""
    shape = decoder_shape(config.get_text_config())
    longest, itemsize = max_sequence_length(shape, settings), getattr(torch, settings.dtype).itemsize
    network: Any = empty_network(config)
    text = network.model.language_model
    layer = _layer_bytes(text.layers[0], itemsize, _bits(config, settings))
    last = sum(weight.numel() for part in (network.lm_head, text.norm) for weight in part.parameters()) * itemsize
    in_layers = sum(weight.numel() for weight in text.layers.parameters())
    first = (sum(weight.numel() for weight in network.parameters()) - in_layers) * itemsize - last
    a_card = -(-shape.layers // settings.num_devices)
    ends = first + last if settings.num_devices == 1 else max(first, last)
    sequence = cache_shape(shape, num_pages(longest), settings.kv_cache_dtype).num_bytes(getattr(torch, settings.dtype))
    return Memory(
        weights=first + last + shape.layers * layer,
        weights_a_card=ends + a_card * layer,
        sequence=sequence,
        sequence_a_card=sequence // shape.layers * a_card,
        computing=computing_bytes(shape, prefill_tokens(settings), itemsize),
    )


def check_memory(config: PreTrainedConfig, settings: EngineSettings, card: int) -> None:
    """Raise Refused, with the flags that would do, where a card of so many free bytes is too small."""
    needed = memory_of(config, settings)
    if needed.least <= card:
        return
    others = list(_others_that_fit(config, settings, card))
    raise Refused(
        f"the model must fit the cards' memory: {describe_memory(needed, settings)}; a card has "
        f"{card / 1e9:.0f} GB. What would fit: {', or '.join(others) or 'a larger card'}"
    )


def describe_memory(needed: Memory, settings: EngineSettings) -> str:
    """Say what is needed, for people."""
    cards = f" over {settings.num_devices} cards" if settings.num_devices > 1 else ""
    return (
        f"{needed.weights / 1e9:.1f} GB of weights ({settings.quantize or settings.dtype}){cards} and "
        f"{needed.sequence / 1e9:.1f} GB for each row at work need cards of {needed.least / 1e9:.0f} GB or more"
    )


def max_sequence_length(shape: DecoderShape, settings: EngineSettings) -> int:
    """Return how many tokens prompt and answer may have together; raises Refused beyond what the model reaches."""
    limit = min(shape.context, shape.window or shape.context)
    if settings.capacity and settings.capacity > limit:
        raise Refused(f"capacity must be at most the model's {limit} tokens, got {settings.capacity}")
    return settings.capacity or min(limit, _LONGEST)


def prefill_tokens(settings: EngineSettings) -> int:
    """Return the padded tokens of a prefill on GPUs."""
    return settings.prefill_tokens or (PREFILL_TOKENS if settings.num_devices == 1 else PREFILL_TOKENS_IN_PARTS)


def cache_shape(shape: DecoderShape, pages: int, dtype: KvCacheDtype | None = None) -> CacheShape:
    """Return the shape of a cache of so many pages."""
    return CacheShape(
        layers=shape.layers, kv_heads=shape.kv_heads, head_dim=shape.head_dim, pages=pages, int8=dtype == "int8"
    )


def computing_bytes(shape: DecoderShape, prefill_tokens: int, itemsize: int) -> int:
    """Return a card's memory beside weights and pages: the activations of a prefill at its widest, and the spare."""
    return prefill_tokens * (4 * shape.intermediate + 12 * shape.hidden) * itemsize + _SPARE_BYTES


def _layer_bytes(layer: nn.Module, itemsize: int, bits: str | None) -> int:
    products = sum(part.weight.numel() for part in layer.modules() if isinstance(part, nn.Linear))
    others = sum(weight.numel() for weight in layer.parameters()) - products
    return int(products * (_PACKED_BYTES[bits] if bits else itemsize)) + others * itemsize


def _bits(config: PreTrainedConfig, settings: EngineSettings) -> str | None:
    """Return how the layers are quantised: as the settings say, or as they were saved."""
    stored: Any = quantization_of(config)
    if stored is None:
        return settings.quantize
    told = stored if isinstance(stored, dict) else stored.to_dict()
    return "4bit" if told.get("load_in_4bit") else "8bit" if told.get("load_in_8bit") else None


def _others_that_fit(config: PreTrainedConfig, settings: EngineSettings, card: int) -> Iterator[str]:
    """Find the flags that would make the model fit such cards."""
    layers = decoder_shape(config.get_text_config()).layers
    for num in (2, 4, 8):
        wider = replace(settings, num_devices=num)
        if settings.num_devices < num <= layers and memory_of(config, wider).least <= card:
            yield f"--gpus-per-model {num}"
            break
    if quantization_of(config) is not None:
        return
    for bits in ("fp8", "4bit"):
        if bits != settings.quantize and memory_of(config, replace(settings, quantize=bits)).least <= card:
            yield f"--quantize {bits}"
