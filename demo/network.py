"""The training forward pass: transformers' own weights, its arithmetic, and questions that share one picture's prefix.

transformers would compute a picture again for each of its questions; here all of a row's questions attend to one prefix.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, rms_norm, scaled_dot_product_attention, silu
from transformers import LlavaNextForConditionalGeneration

from demo.examples import IGNORED, LETTERS_A_PATCH, Batch

NUM_LETTERS = 257  # nothing, and every byte


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorBatch:
    """A batch on its way to the device."""

    tiles: Tensor
    sources: Tensor
    prefix_lengths: Tensor
    tokens: Tensor
    segments: Tensor
    positions: Tensor
    labels: Tensor
    probes: Tensor
    letters: Tensor
    kinds: tuple[tuple[str, ...], ...]

    def moved(self, move: Callable[[Tensor], Tensor]) -> "TensorBatch":
        """The batch with every tensor moved."""
        names = [name for name in self.__slots__ if name != "kinds"]
        return TensorBatch(**{name: move(getattr(self, name)) for name in names}, kinds=self.kinds)

    def pin_memory(self) -> "TensorBatch":
        """Called by the data loader, so that copies to the device overlap with work."""
        return self.moved(lambda tensor: tensor.pin_memory())


def to_tensors(batch: Batch) -> TensorBatch:
    """The batch as tensors on the CPU."""
    names = [name for name in batch.__slots__ if name != "kinds"]
    return TensorBatch(**{name: torch.from_numpy(getattr(batch, name)) for name in names}, kinds=batch.kinds)


class Trainee(nn.Module):
    """A LlavaNext model and, beside it, a head that must name the letters in a patch: it makes training start early."""

    def __init__(self, model: LlavaNextForConditionalGeneration, mean: list[float], std: list[float]) -> None:
        super().__init__()
        self.model = model
        self.letters = nn.Linear(model.config.text_config.hidden_size, LETTERS_A_PATCH * NUM_LETTERS)
        self.register_buffer("mean", torch.tensor(mean).mul(255)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(std).mul(255)[:, None, None], persistent=False)
        self.vision_layer: Callable[..., Tensor] = vision_layer
        self.text_layer: Callable[..., Tensor] = text_layer

    def forward(self, batch: TensorBatch) -> tuple[Tensor, Tensor]:
        """Logits of the question tokens (rows, tokens, vocabulary) and of the probes (rows, probes, 2, letters)."""
        features = self._features(batch.tiles)
        rows, prefix = batch.sources.shape
        flat = features.flatten(0, 1)
        first = torch.arange(rows, device=flat.device)[:, None] * (len(flat) // rows)
        hidden = self._embed(batch, flat, first)
        text: Any = self.model.model.language_model
        positions = torch.cat([torch.arange(prefix, device=flat.device).expand(rows, -1), batch.positions], 1)
        rotation = text.rotary_emb(hidden, positions)
        mask = question_mask(batch.prefix_lengths, batch.segments, prefix)
        for layer in text.layers[: text.config.num_hidden_layers]:
            hidden = self.text_layer(layer, hidden, rotation, mask, prefix)
        logits = self.model.lm_head(text.norm(hidden[:, prefix:]))
        letters = self.letters(flat[first + batch.probes])
        return logits, letters.unflatten(-1, (LETTERS_A_PATCH, NUM_LETTERS))

    def _features(self, tiles: Tensor) -> Tensor:
        """(tiles, patches, text width)"""
        model: Any = self.model.model
        tower = getattr(model.vision_tower, "vision_model", model.vision_tower)  # a level deeper before 5.20 or so
        pixels = (tiles.permute(0, 3, 1, 2).to(self.mean.dtype) - self.mean) / self.std
        hidden = tower.pre_layrnorm(tower.embeddings(pixels)).to(_working_type(pixels))
        layers = list(tower.encoder.layers)
        for layer in layers[: len(layers) + 1 + model.config.vision_feature_layer]:
            hidden = self.vision_layer(layer, hidden)
        return model.multi_modal_projector(hidden[:, 1:])

    def _embed(self, batch: TensorBatch, flat: Tensor, first: Tensor) -> Tensor:
        """Features and token embeddings, by one gather from both tables."""
        model: Any = self.model.model
        words = model.language_model.embed_tokens.weight
        table = torch.cat([words.to(flat.dtype), model.image_newline[None].to(flat.dtype), flat])
        feature = len(words) + 1 + first - 2 - batch.sources
        newline = torch.full_like(batch.sources, len(words))
        index = torch.where(batch.sources < -1, feature, torch.where(batch.sources == -1, newline, batch.sources))
        return table[torch.cat([index, batch.tokens], 1)]


def losses(logits: Tensor, letters: Tensor, batch: TensorBatch) -> tuple[Tensor, Tensor]:
    """The mean loss of answer tokens and of probed letters."""
    answer = cross_entropy(logits.flatten(0, 1).float(), batch.labels.flatten(), ignore_index=IGNORED)
    return answer, cross_entropy(letters.flatten(0, 2).float(), batch.letters.flatten())


def question_mask(prefix_lengths: Tensor, segments: Tensor, prefix: int) -> Tensor:
    """(rows, 1, tokens, prefix + tokens): a token sees the picture and what stands before it in its own question."""
    tokens = segments.shape[1]
    device = segments.device
    picture = torch.arange(prefix, device=device) < prefix_lengths[:, None]
    before = torch.ones(tokens, tokens, dtype=torch.bool, device=device).tril()
    own = before & (segments[:, :, None] == segments[:, None, :])
    return torch.cat([picture[:, None, :].expand(-1, tokens, -1), own], 2)[:, None]


def vision_layer(layer: Any, hidden: Tensor) -> Tensor:
    """One CLIP layer."""
    attention = layer.self_attn
    heads = attention.num_heads
    x = layer.layer_norm1(hidden)
    q, k, v = (_split(project(x), heads) for project in (attention.q_proj, attention.k_proj, attention.v_proj))
    hidden = hidden + attention.out_proj(_joined(scaled_dot_product_attention(q, k, v)))
    x = layer.mlp.fc1(layer.layer_norm2(hidden))
    return hidden + layer.mlp.fc2(x * torch.sigmoid(1.702 * x))


def text_layer(layer: Any, hidden: Tensor, rotation: tuple[Tensor, Tensor], mask: Tensor, prefix: int) -> Tensor:
    """One Llama layer; the prefix is causal, the questions follow the mask."""
    attention = layer.self_attn
    size = attention.head_dim
    x = _rms(layer.input_layernorm, hidden)
    q = _rotated(_split(attention.q_proj(x), -1, size), rotation)
    k = _rotated(_split(attention.k_proj(x), -1, size), rotation)
    v = _split(attention.v_proj(x), -1, size)
    k, v = (each.repeat_interleave(attention.num_key_value_groups, 1) for each in (k, v))
    picture = scaled_dot_product_attention(q[:, :, :prefix], k[:, :, :prefix], v[:, :, :prefix], is_causal=True)
    question = scaled_dot_product_attention(q[:, :, prefix:], k, v, attn_mask=mask)
    hidden = hidden + attention.o_proj(_joined(torch.cat([picture, question], 2)))
    x = _rms(layer.post_attention_layernorm, hidden)
    return hidden + layer.mlp.down_proj(silu(layer.mlp.gate_proj(x)) * layer.mlp.up_proj(x))


def _working_type(reference: Tensor) -> torch.dtype:
    return torch.bfloat16 if torch.is_autocast_enabled(reference.device.type) else reference.dtype


def _rms(norm: Any, hidden: Tensor) -> Tensor:
    return rms_norm(hidden.float(), (hidden.shape[-1],), norm.weight, norm.variance_epsilon).to(hidden.dtype)


def _split(hidden: Tensor, heads: int, size: int = -1) -> Tensor:
    return hidden.unflatten(-1, (heads, size)).transpose(1, 2)


def _joined(heads: Tensor) -> Tensor:
    return heads.transpose(1, 2).flatten(2)


def _rotated(heads: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    cosine, sine = (part[:, None].to(heads.dtype) for part in rotation)
    one, other = heads.chunk(2, -1)
    return heads * cosine + torch.cat([-other, one], -1) * sine
