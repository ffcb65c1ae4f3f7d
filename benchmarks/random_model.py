"""Networks of real shapes with random weights, made on the device: what speed is measured on without any download."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    MistralConfig,
    PreTrainedConfig,
)

from demo.checkpoint import BOS, EOS, IMAGE, PAD, Shape, build_config, build_processor, byte_tokenizer
from pipeline.engine.model import LoadedModel, make_ready
from schemas.engine import EngineSettings

TINY = Shape()
REAL = Shape(tile=336, patch=14)
_IDS: dict[str, Any] = {"bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": PAD}


def _mistral_7b() -> PreTrainedConfig:
    sizes: dict[str, Any] = {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32}
    heads: dict[str, Any] = {"num_attention_heads": 32, "num_key_value_heads": 8, "sliding_window": None}
    rope = {"rope_type": "default", "rope_theta": 1e6}
    return MistralConfig(
        **sizes, **heads, **_IDS, vocab_size=32064, max_position_embeddings=32768, rope_parameters=rope
    )


def _vicuna_7b() -> PreTrainedConfig:
    sizes: dict[str, Any] = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32}
    heads: dict[str, Any] = {"num_attention_heads": 32, "num_key_value_heads": 32}
    return LlamaConfig(**sizes, **heads, **_IDS, vocab_size=32064, max_position_embeddings=4096)


SHAPES: dict[str, Callable[[], PreTrainedConfig] | None] = {
    "mistral-7b": _mistral_7b,
    "vicuna-7b": _vicuna_7b,
    "tiny": None,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomModel:
    """A shape, and the folder of its config, tokenizer and processor: everything of a checkpoint but weights."""

    config: LlavaNextConfig
    folder: Path

    def load(self, settings: EngineSettings) -> LoadedModel:
        """Random weights on the device of `settings`; every row of the vocabulary can be drawn."""
        network = build_random(self.config, settings.device, getattr(torch, settings.dtype))
        processor = build_processor(REAL, byte_tokenizer())
        vocabulary = self.config.get_text_config().vocab_size
        return replace(make_ready(network, processor, settings), num_tokens=vocabulary)


def write_model(name: str, folder: Path) -> RandomModel:
    """Write the parts that preprocessing reads."""
    tokenizer, text = byte_tokenizer(), SHAPES[name]
    shape = REAL if text else TINY
    config = _config(text()) if text else build_config(TINY, len(tokenizer))
    config.save_pretrained(folder)
    build_processor(shape, tokenizer).save_pretrained(folder)
    return RandomModel(config=config, folder=folder)


def build_random(config: LlavaNextConfig, device: str, dtype: torch.dtype) -> LlavaNextForConditionalGeneration:
    """A network whose weights are drawn where they stay."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    torch.manual_seed(0)
    try:
        with torch.device(device):
            network = LlavaNextForConditionalGeneration(config)
    finally:
        torch.set_default_dtype(before)
    network.requires_grad_(False).eval()
    return network


def _config(text: PreTrainedConfig) -> LlavaNextConfig:
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
