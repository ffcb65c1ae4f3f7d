"""The training forward pass: transformers' own weights and arithmetic, but questions that share one picture's prefix.

transformers would compute a picture again for each of its questions; here all questions of a row attend to one prefix.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction, FunctionCtx
from torch.nn.functional import cross_entropy, embedding, rms_norm, scaled_dot_product_attention, silu
from transformers import LlavaNextForConditionalGeneration

from demo.checkpoint import PAD
from demo.examples import IGNORED, LETTERS_A_PATCH, Batch

Rotation = tuple[Tensor, Tensor]
VisionLayer = Callable[[nn.Module, Tensor], Tensor]
TextLayer = Callable[[nn.Module, Tensor, Rotation, Tensor, int], Tensor]
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
    weights: Tensor
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
        text: Any = model.config.text_config
        self.letters = nn.Linear(text.hidden_size, LETTERS_A_PATCH * NUM_LETTERS)
        self.mean = nn.Buffer(torch.tensor(mean).mul(255)[:, None, None], persistent=False)
        self.std = nn.Buffer(torch.tensor(std).mul(255)[:, None, None], persistent=False)
        self.vision_layer: VisionLayer = vision_layer
        self.text_layer: TextLayer = text_layer

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
        pixels = (tiles.permute(0, 3, 1, 2).float() - self.mean) / self.std
        hidden = tower.pre_layrnorm(tower.embeddings(pixels)).to(_working_type(pixels))
        layers = list(tower.encoder.layers)
        for layer in layers[: len(layers) + 1 + model.config.vision_feature_layer]:
            hidden = self.vision_layer(layer, hidden)
        return cast(Tensor, model.multi_modal_projector(hidden[:, 1:]))

    def _embed(self, batch: TensorBatch, flat: Tensor, first: Tensor) -> Tensor:
        """Features and token embeddings in the places that `sources` and `tokens` give them."""
        model: Any = self.model.model
        shown = batch.sources < -1
        words = torch.cat([model.language_model.embed_tokens.weight, model.image_newline[None]])
        ids = torch.where(shown, PAD, torch.where(batch.sources == -1, len(words) - 1, batch.sources))
        # padding_idx: the gradient of padding is zero anyway, and summing it would take longer than all the rest
        embedded = embedding(torch.cat([ids, batch.tokens], 1), words, padding_idx=PAD).to(flat.dtype)
        prefix = batch.sources.shape[1]
        placed = place(flat, (first - 2 - batch.sources).where(shown, 0), shown)
        return torch.cat([torch.where(shown[:, :, None], placed, embedded[:, :prefix]), embedded[:, prefix:]], 1)


class _Placed(torch.autograd.Function):
    """Features at the places where they are shown, each at most once: so the gradient is a gather, not a sum."""

    @staticmethod
    def forward(ctx: FunctionCtx, flat: Tensor, index: Tensor, shown: Tensor) -> Tensor:
        nowhere = shown.numel()
        places = torch.full((len(flat) + 1,), nowhere, device=flat.device)
        targets = torch.where(shown, index, len(flat)).flatten()  # all that is not shown lands on one spare row
        places.scatter_(0, targets, torch.arange(nowhere, device=flat.device))
        ctx.save_for_backward(places[:-1])
        return flat[index]

    @staticmethod
    def backward(ctx: BackwardCFunction, gradient: Tensor) -> tuple[Tensor, None, None]:
        (places,) = ctx.saved_tensors
        rows = gradient.flatten(0, 1)
        return torch.cat([rows, rows.new_zeros(1, rows.shape[1])])[places], None, None


def place(flat: Tensor, index: Tensor, shown: Tensor) -> Tensor:
    """(rows, prefix, width): feature `index` where one is shown, anything elsewhere; no feature is shown twice."""
    apply: Callable[[Tensor, Tensor, Tensor], Tensor] = _Placed.apply
    return apply(flat, index, shown)


def losses(logits: Tensor, letters: Tensor, batch: TensorBatch) -> tuple[Tensor, Tensor]:
    """The mean loss of answer tokens and of probed letters."""
    each = cross_entropy(logits.flatten(0, 1).float(), batch.labels.flatten(), ignore_index=IGNORED, reduction="none")
    answer = (each * batch.weights.flatten()).sum() / batch.weights.sum()
    return answer, cross_entropy(letters.flatten(0, 2).float(), batch.letters.flatten())


def question_mask(prefix_lengths: Tensor, segments: Tensor, prefix: int) -> Tensor:
    """(rows, 1, tokens, prefix + tokens): a token sees the picture and what stands before it in its own question."""
    tokens = segments.shape[1]
    device = segments.device
    picture = torch.arange(prefix, device=device) < prefix_lengths[:, None]
    before = torch.ones(tokens, tokens, dtype=torch.bool, device=device).tril()
    own = before & (segments[:, :, None] == segments[:, None, :])
    return torch.cat([picture[:, None, :].expand(-1, tokens, -1), own], 2)[:, None]


def vision_layer(layer: nn.Module, hidden: Tensor) -> Tensor:
    """One CLIP layer."""
    clip: Any = layer
    attention = clip.self_attn
    x = clip.layer_norm1(hidden)
    q, k, v = (
        _split(project(x), attention.num_heads) for project in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    hidden = hidden + attention.out_proj(_joined(scaled_dot_product_attention(q, k, v)))
    x = clip.mlp.fc1(clip.layer_norm2(hidden))
    return hidden + cast(Tensor, clip.mlp.fc2(x * torch.sigmoid(1.702 * x)))


def text_layer(layer: nn.Module, hidden: Tensor, rotation: Rotation, mask: Tensor, prefix: int) -> Tensor:
    """One Llama layer; the prefix is causal, the questions follow the mask."""
    llama: Any = layer
    attention = llama.self_attn
    x = _rms(llama.input_layernorm, hidden)
    q, k, v = (
        _split(project(x), project.out_features // attention.head_dim)
        for project in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    q, k = _rotated(q, rotation), _rotated(k, rotation)
    k, v = (each.repeat_interleave(attention.num_key_value_groups, 1) for each in (k, v))
    picture = scaled_dot_product_attention(q[:, :, :prefix], k[:, :, :prefix], v[:, :, :prefix], is_causal=True)
    question = scaled_dot_product_attention(q[:, :, prefix:], k, v, attn_mask=mask)
    hidden = hidden + attention.o_proj(_joined(torch.cat([picture, question], 2)))
    x = _rms(llama.post_attention_layernorm, hidden)
    return hidden + cast(Tensor, llama.mlp.down_proj(silu(llama.mlp.gate_proj(x)) * llama.mlp.up_proj(x)))


def _working_type(reference: Tensor) -> torch.dtype:
    return torch.bfloat16 if torch.is_autocast_enabled(reference.device.type) else reference.dtype


def _rms(module: nn.Module, hidden: Tensor) -> Tensor:
    norm: Any = module
    normed: Tensor = rms_norm(hidden.float(), (hidden.shape[-1],), norm.weight, norm.variance_epsilon)
    return normed.to(hidden.dtype)


def _split(hidden: Tensor, heads: int) -> Tensor:
    split: Tensor = hidden.unflatten(-1, (heads, hidden.shape[-1] // heads))
    return split.transpose(1, 2)


def _joined(heads: Tensor) -> Tensor:
    return heads.transpose(1, 2).flatten(2)


def _rotated(heads: Tensor, rotation: Rotation) -> Tensor:
    cosine, sine = (part[:, None].to(heads.dtype) for part in rotation)
    one, other = heads.chunk(2, -1)
    return heads * cosine + torch.cat([-other, one], -1) * sine
