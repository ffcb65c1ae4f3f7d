"""The seven published checkpoints: their configs as the hub has them, whole or with the sizes shrunk."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    GenerationConfig,
    LlavaNextImageProcessorPil,
    LlavaNextProcessor,
    PreTrainedTokenizerFast,
)

GRIDS = ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))  # tiles high and wide
SHRUNK_TILE = 56


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """One checkpoint: `text` is its text config, `special` its tokens that are not pieces of text, with their ids."""

    name: str
    format: str
    image_token_id: int
    text: dict[str, Any]
    special: dict[str, int]
    bos: str | None = None  # what the tokenizer puts before a text
    eos: str
    generation: dict[str, Any] = field(default_factory=dict)

    def config(self, *, shrunk: bool) -> dict[str, Any]:
        """The content of its config.json."""
        tile = SHRUNK_TILE if shrunk else 336
        vision = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
        if shrunk:
            vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2}
        return {
            "model_type": "llava_next",
            "architectures": ["LlavaNextForConditionalGeneration"],
            "image_token_index": self.image_token_id,
            "image_grid_pinpoints": [[tile * high, tile * wide] for high, wide in GRIDS],
            "vision_feature_layer": -2,
            "vision_feature_select_strategy": "default",
            "tie_word_embeddings": False,
            "vision_config": {
                "model_type": "clip_vision_model",
                "image_size": tile,
                "patch_size": 14,
                "projection_dim": 768,
                **vision,
            },
            "text_config": {**self.text, **(self._shrunk_text() if shrunk else {})},
        }

    def _shrunk_text(self) -> dict[str, Any]:
        """Two layers of few heads: as many queries a key as before. Larger weights make for answers that differ."""
        group = self.text["num_attention_heads"] // self.text["num_key_value_heads"]
        keys = 2 if group == 1 else 1
        return {
            "hidden_size": 16 * group * keys,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": group * keys,
            "num_key_value_heads": keys,
            "initializer_range": 0.2,
        }


def _llama(**sizes: Any) -> dict[str, Any]:
    return {"model_type": "llama", "rms_norm_eps": 1e-05, "tie_word_embeddings": False, **sizes}


def _sizes(width: int, inner: int, layers: int, heads: int, keys: int) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": keys,
    }


_SENTENCEPIECE = {"<unk>": 0, "<s>": 1, "</s>": 2, "<image>": 32000, "<pad>": 32001}
_QWEN = {"<|endoftext|>": 151643, "<|im_start|>": 151644, "<|im_end|>": 151645, "<image>": 151646}
_YI = {"<unk>": 0, "<|startoftext|>": 1, "<|endoftext|>": 2, "<|im_start|>": 6, "<|im_end|>": 7, "<image>": 64000}
_VICUNA = {"vocab_size": 32064, "max_position_embeddings": 4096, "rope_theta": 10000.0}
_QWEN_TEXT = {
    "model_type": "qwen2",
    "vocab_size": 152064,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "use_sliding_window": False,
    "tie_word_embeddings": False,
}

PUBLISHED = (
    Published(
        name="llava-v1.6-mistral-7b-hf",
        format="mistral",
        image_token_id=32000,
        text={
            "model_type": "mistral",
            "vocab_size": 32064,
            "max_position_embeddings": 32768,
            "rms_norm_eps": 1e-05,
            "sliding_window": None,
            "rope_theta": 1000000.0,
            **_sizes(4096, 14336, 32, 32, 8),
        },
        special=_SENTENCEPIECE,
        bos="<s>",
        eos="</s>",
        generation={"eos_token_id": 2, "pad_token_id": 32001},
    ),
    Published(
        name="llava-v1.6-vicuna-7b-hf",
        format="vicuna",
        image_token_id=32000,
        text=_llama(**_VICUNA, **_sizes(4096, 11008, 32, 32, 32)),
        special=_SENTENCEPIECE,
        bos="<s>",
        eos="</s>",
        generation={"eos_token_id": 2, "pad_token_id": 0},
    ),
    Published(
        name="llava-v1.6-vicuna-13b-hf",
        format="vicuna",
        image_token_id=32000,
        text=_llama(**_VICUNA, **_sizes(5120, 13824, 40, 40, 40)),
        special=_SENTENCEPIECE,
        bos="<s>",
        eos="</s>",
        generation={"eos_token_id": 2, "pad_token_id": 0},
    ),
    Published(
        name="llava-v1.6-34b-hf",
        format="34b",
        image_token_id=64000,
        text=_llama(
            vocab_size=64064,
            max_position_embeddings=4096,
            rope_theta=5000000.0,
            eos_token_id=7,
            **_sizes(7168, 20480, 60, 56, 8),
        ),
        special=_YI,
        eos="<|im_end|>",
    ),
    Published(
        name="llama3-llava-next-8b-hf",
        format="llama3-8b",
        image_token_id=128256,
        text=_llama(
            vocab_size=128320,
            max_position_embeddings=8192,
            rope_theta=500000.0,
            **_sizes(4096, 14336, 32, 32, 8),
        ),
        special={
            "<|begin_of_text|>": 128000,
            "<|end_of_text|>": 128001,
            "<|start_header_id|>": 128006,
            "<|end_header_id|>": 128007,
            "<|eot_id|>": 128009,
            "<image>": 128256,
            "<pad>": 128257,
        },
        bos="<|begin_of_text|>",
        eos="<|eot_id|>",
        generation={"eos_token_id": 128009},
    ),
    Published(
        name="llava-next-72b-hf",
        format="72b",
        image_token_id=151646,
        text={**_QWEN_TEXT, **_sizes(8192, 24576, 80, 64, 64)},
        special=_QWEN,
        eos="<|im_end|>",
        generation={"eos_token_id": 151645},
    ),
    Published(
        name="llava-next-110b-hf",
        format="110b",
        image_token_id=151646,
        text={**_QWEN_TEXT, **_sizes(8192, 49152, 80, 64, 8)},
        special=_QWEN,
        eos="<|im_end|>",
        generation={"eos_token_id": 151645},
    ),
)


def write_config(published: Published, folder: Path, *, shrunk: bool, tokenizer: PreTrainedTokenizerFast) -> None:
    """Everything of a checkpoint but its weights."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(published.config(shrunk=shrunk)))
    if published.generation:
        GenerationConfig(**published.generation).save_pretrained(folder)
    tile = SHRUNK_TILE if shrunk else 336
    images = LlavaNextImageProcessorPil(
        size={"shortest_edge": tile},
        crop_size={"height": tile, "width": tile},
        image_grid_pinpoints=[[tile * high, tile * wide] for high, wide in GRIDS],
    )
    LlavaNextProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    ).save_pretrained(folder)


def write_shrunk(published: Published, folder: Path) -> None:
    """A whole checkpoint with random weights in float32, which spells texts byte by byte."""
    write_config(published, folder, shrunk=True, tokenizer=spelling_tokenizer(published))
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(folder))
    if published.generation:
        model.generation_config = GenerationConfig(**published.generation)
    model.save_pretrained(folder)


def spelling_tokenizer(published: Published) -> PreTrainedTokenizerFast:
    """One token a byte at ids that are no special token's."""
    letters = {token: 1000 + i for i, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab={**letters, **published.special}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(published.special))
    return finish_tokenizer(tokenizer, published)


def finish_tokenizer(tokenizer: Tokenizer, published: Published) -> PreTrainedTokenizerFast:
    """The tokenizer with the checkpoint's beginning, end and image token."""
    if published.bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{published.bos} $A", special_tokens=[(published.bos, published.special[published.bos])]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=published.bos,
        eos_token=published.eos,
        padding_side="left",
        extra_special_tokens={"image_token": "<image>"},
    )
