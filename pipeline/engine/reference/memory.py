"""Count the rows of a padded batch that a card's memory holds, from a config alone."""

from typing import Any

import torch
from transformers import PreTrainedConfig

from schemas.engine import EngineSettings

_MOST_ROWS = 256
_SHARE = 0.8  # of the free memory: the vision tower and the allocator's gaps have the rest
_LONGEST = 4096  # tokens of a prompt and its answer where no capacity is set


def rows_in_memory(config: PreTrainedConfig, settings: EngineSettings, free_bytes: int) -> int:
    """Return the rows of full length that fit: keys and values of all layers, and the activations of their prefill."""
    text: Any = config.get_text_config()
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    inner = getattr(text, "intermediate_size", None) or 4 * text.hidden_size
    numbers = 2 * text.num_hidden_layers * heads * head + 4 * inner + 12 * text.hidden_size
    longest = settings.capacity or min(getattr(text, "max_position_embeddings", None) or _LONGEST, _LONGEST)
    a_row: int = longest * numbers * getattr(torch, settings.dtype).itemsize
    return max(1, min(_MOST_ROWS, int(_SHARE * free_bytes * settings.num_devices) // a_row))
