"""Builds small LLaVA-NeXT checkpoints with random weights: where training the demo model starts, and what tests run.

A folder written here is an ordinary Hugging Face checkpoint: AutoProcessor and AutoModelForImageTextToText load it.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    CLIPVisionConfig,
    GenerationConfig,
    LlamaConfig,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessorPil,
    LlavaNextProcessor,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

from pipeline.preprocess.geometry import Anyres
from schemas.sample import Size

Backbone = Literal["llama", "mistral", "qwen2"]
SPECIAL_TOKENS = ("<s>", "</s>", "<image>", "<pad>", "<user>", "<assistant>")
BOS, EOS, IMAGE, PAD, USER, ASSISTANT = range(6)
NUM_SPECIAL = len(SPECIAL_TOKENS)
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<' + message['role'] + '>' }}"
    "{% for part in message['content'] %}"
    "{{ '<image>\\n' if part['type'] == 'image' else part['text'] }}"
    "{% endfor %}{% if message['role'] == 'assistant' %}{{ '</s>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """The sizes of a small checkpoint. Pixels: `tile`, `patch`; the anyres grids are those of LLaVA-NeXT, in tiles."""

    backbone: Backbone = "llama"
    tile: int = 56
    patch: int = 14
    vision_width: int = 32
    vision_hidden: int = 128
    vision_layers: int = 3
    vision_heads: int = 4
    feature_layer: int = -2
    text_width: int = 64
    text_hidden: int = 192
    text_layers: int = 2
    text_heads: int = 4
    text_kv_heads: int = 2
    context: int = 1024

    def grids(self) -> list[list[int]]:
        """The published pinpoints (height, width), scaled to this tile."""
        return [[self.tile * rows, self.tile * cols] for rows, cols in ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))]


# The demo model, 7.9 M parameters: the real geometry at half the size. It takes the features of the last vision layer,
# not of the last but one: a layer that nothing reads would be a tenth of its weights.
DEMO = Shape(
    tile=168,
    vision_width=256,
    vision_hidden=768,
    vision_layers=5,
    feature_layer=-1,
    text_width=256,
    text_hidden=640,
    text_layers=6,
    text_heads=8,
    text_kv_heads=4,
    context=2048,
)


def anyres_of(shape: Shape) -> Anyres:
    """The geometry that preprocessing cuts pictures by for a shape."""
    return Anyres(tile=shape.tile, patch=shape.patch, grids=tuple(Size(w, h) for h, w in shape.grids()))


def build_checkpoint(folder: Path, shape: Shape, seed: int = 0) -> None:
    """Write config, random weights (float32), tokenizer, processor, generation config and chat template to `folder`."""
    tokenizer = byte_tokenizer()
    build_processor(shape, tokenizer).save_pretrained(folder)
    build_model(shape, len(tokenizer), seed).save_pretrained(folder)


def build_model(shape: Shape, vocabulary: int, seed: int) -> LlavaNextForConditionalGeneration:
    """The model of `shape` with random weights in float32."""
    torch.manual_seed(seed)
    model = LlavaNextForConditionalGeneration(build_config(shape, vocabulary))
    model.generation_config = GenerationConfig(bos_token_id=BOS, eos_token_id=EOS, pad_token_id=PAD)
    return model


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, after the special tokens: nothing to learn, any text can be written."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*SPECIAL_TOKENS, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        padding_side="left",
        extra_special_tokens={"image_token": "<image>"},
    )


def build_processor(shape: Shape, tokenizer: PreTrainedTokenizerFast) -> LlavaNextProcessor:
    """The processor that belongs to `shape`: anyres grids, patch size, feature strategy and chat template."""
    image_processor = LlavaNextImageProcessorPil(
        size={"shortest_edge": shape.tile},
        crop_size={"height": shape.tile, "width": shape.tile},
        image_grid_pinpoints=shape.grids(),
    )
    return LlavaNextProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        patch_size=shape.patch,
        vision_feature_select_strategy="default",
        chat_template=CHAT_TEMPLATE,
        num_additional_image_tokens=1,
    )


def build_config(shape: Shape, vocabulary: int) -> LlavaNextConfig:
    """The model config of `shape`: features of the shape's vision layer, without the class token."""
    vision = CLIPVisionConfig(
        hidden_size=shape.vision_width,
        intermediate_size=shape.vision_hidden,
        num_hidden_layers=shape.vision_layers,
        num_attention_heads=shape.vision_heads,
        image_size=shape.tile,
        patch_size=shape.patch,
        projection_dim=shape.vision_width,
    )
    return LlavaNextConfig(
        vision_config=vision,
        text_config=_text_config(shape, vocabulary),
        image_token_index=IMAGE,
        image_grid_pinpoints=shape.grids(),
        vision_feature_layer=shape.feature_layer,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
    )


def _text_config(shape: Shape, vocabulary: int) -> PreTrainedConfig:
    sizes: dict[str, Any] = {
        "vocab_size": vocabulary,
        "hidden_size": shape.text_width,
        "intermediate_size": shape.text_hidden,
        "num_hidden_layers": shape.text_layers,
        "num_attention_heads": shape.text_heads,
        "num_key_value_heads": shape.text_kv_heads,
        "max_position_embeddings": shape.context,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "pad_token_id": PAD,
    }
    match shape.backbone:
        case "llama":
            return LlamaConfig(**sizes)
        case "mistral":
            return MistralConfig(**sizes, sliding_window=None)
        case "qwen2":
            return Qwen2Config(**sizes)
