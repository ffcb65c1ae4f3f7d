"""Networks of real shapes with random weights, made on the device: what speed is measured on without any download."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import nn
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    MistralConfig,
    PreTrainedConfig,
    Qwen2Config,
)

from benchmarks.packed import mark_packed, packed
from demo.checkpoint import BOS, EOS, IMAGE, PAD, Shape, build_config, build_processor, byte_tokenizer
from pipeline.engine.kernels.packages import check_packages
from pipeline.engine.network.load import LoadedModel, make_ready
from pipeline.engine.network.partition import devices_of, partition
from schemas.engine import EngineSettings

TINY = Shape()
REAL = Shape(tile=336, patch=14)
Sizes: TypeAlias = dict[str, Any]
_IDS: Sizes = {"bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": PAD}


def _sizes(width: int, inner: int, layers: int, heads: int, kv_heads: int) -> Sizes:
    return {
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        **_IDS,
    }


def _text(kind: type[PreTrainedConfig], vocabulary: int, context: int, theta: float, sizes: Sizes) -> PreTrainedConfig:
    rope = {"rope_type": "default", "rope_theta": theta}
    other: dict[str, Any] = {
        "vocab_size": vocabulary,
        "max_position_embeddings": context,
        "rope_parameters": rope,
        "sliding_window": None,
    }
    return kind(**sizes, **other)


# The text networks of the published checkpoints, by the checkpoint's name.
SHAPES: dict[str, Callable[[], PreTrainedConfig] | None] = {
    "mistral-7b": lambda: _text(MistralConfig, 32064, 32768, 1e6, _sizes(4096, 14336, 32, 32, 8)),
    "vicuna-7b": lambda: _text(LlamaConfig, 32064, 4096, 1e4, _sizes(4096, 11008, 32, 32, 32)),
    "vicuna-13b": lambda: _text(LlamaConfig, 32064, 4096, 1e4, _sizes(5120, 13824, 40, 40, 40)),
    "34b": lambda: _text(LlamaConfig, 64064, 4096, 5e6, _sizes(7168, 20480, 60, 56, 8)),
    "llama3-8b": lambda: _text(LlamaConfig, 128320, 8192, 5e5, _sizes(4096, 14336, 32, 32, 8)),
    "72b": lambda: _text(Qwen2Config, 152064, 32768, 1e6, _sizes(8192, 24576, 80, 64, 64)),
    "110b": lambda: _text(Qwen2Config, 152064, 32768, 1e6, _sizes(8192, 49152, 80, 64, 8)),
    "tiny": None,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomModel:
    """A shape, and the folder of its config, tokenizer and processor: everything of a checkpoint but weights."""

    config: LlavaNextConfig
    folder: Path

    def load(self, settings: EngineSettings) -> LoadedModel:
        """Make random weights on the devices of `settings`; every token of the vocabulary can be sampled."""
        check_packages(settings)
        self.config._attn_implementation = settings.attention
        network = build_random(self.config, settings)
        processor = build_processor(REAL, byte_tokenizer())
        vocabulary = self.config.get_text_config().vocab_size
        return replace(make_ready(network, processor, settings), num_tokens=vocabulary)


def write_model(name: str, folder: Path) -> RandomModel:
    """Write the parts that preprocessing reads."""
    tokenizer, text = byte_tokenizer(), SHAPES[name]
    shape = REAL if text else TINY
    config = full_config(text()) if text else build_config(TINY, len(tokenizer))
    config.save_pretrained(folder)
    build_processor(shape, tokenizer).save_pretrained(folder)
    return RandomModel(config=config, folder=folder)


def write_weights(model: RandomModel) -> None:
    """Write a weights file with a whole header and nothing behind it: the plan reads headers, `load` draws weights."""
    with torch.device("meta"):
        network = LlavaNextForConditionalGeneration(model.config)
    header, end = {}, 0
    for name, tensor in network.state_dict().items():
        begin, end = end, end + 2 * tensor.numel()
        header[name] = {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with (model.folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)


def full_config(text: PreTrainedConfig) -> LlavaNextConfig:
    """Wrap a text network's config in the checkpoint's: the vision tower is the same in all."""
    vision = CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=REAL.tile,
        patch_size=REAL.patch,
        projection_dim=768,
    )
    return LlavaNextConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=IMAGE,
        image_grid_pinpoints=REAL.grids(),
        tie_word_embeddings=False,
    )


def build_random(config: LlavaNextConfig, settings: EngineSettings) -> LlavaNextForConditionalGeneration:
    """Build a network with random weights, layer after layer on the devices of `settings`."""
    text = config.get_text_config()
    parts = partition(text.num_hidden_layers, devices_of(settings))
    torch.manual_seed(0)
    with _drawing(parts[0].device, settings):
        network = _with_one_layer(config)
    own: Any = network.model.language_model
    make, own.layers = type(own.layers[0]), nn.ModuleList()

    def draw(layer: int, device: torch.device) -> nn.Module:
        with _drawing(device, settings):
            drawn: nn.Module = make(text, layer).apply(network._init_weights)
        return packed(drawn, settings)

    for part in parts:
        # In 8 bits of our own every block has weights of its own: those they are made from may be one layer's for all.
        indices = part.layers[:1] if settings.quantize == "fp8" else part.layers
        layers = [draw(i, part.device) for i in indices]
        own.layers.extend(layers * (len(part.layers) // len(layers)))
    mark_packed(network, settings)
    network.requires_grad_(False).eval()
    return network


@contextmanager
def _drawing(device: torch.device, settings: EngineSettings) -> Iterator[None]:
    """Make everything on the device, in the type of `settings`, while the block runs."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, settings.dtype))
    try:
        with device, torch.no_grad():
            yield
    finally:
        torch.set_default_dtype(before)


def _with_one_layer(config: LlavaNextConfig) -> LlavaNextForConditionalGeneration:
    """Build the network, cut to its first layer of text; its config says what the whole one's does."""
    text: Any = config.get_text_config()
    layers, text.num_hidden_layers = text.num_hidden_layers, 1
    try:
        return LlavaNextForConditionalGeneration(config)
    finally:
        text.num_hidden_layers = layers
