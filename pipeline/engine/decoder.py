"""The text network: one block for mistral, llama and qwen2, over the weights that transformers loaded."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import silu
from transformers import LlavaNextForConditionalGeneration, PreTrainedConfig

from pipeline.engine.attention import Attend, cached, causal
from pipeline.engine.cache import Cache
from pipeline.engine.linear import Fp8Linear, join

BACKBONES = ("llama", "mistral", "qwen2")
# How they stretch the rotary angles: all but those that change with the length of a prompt while it runs.
ROPE_TYPES = ("default", "linear", "llama3", "yarn")

# Kernels are chosen by rule: which of several is the fastest a measurement would say otherwise in every process.
DETERMINISTIC: dict[str, str | int | bool | Callable[..., Any]] = {"deterministic": True}


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderShape:
    """The numbers in which the backbones differ."""

    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    intermediate: int
    context: int
    window: int | None  # tokens that attention reaches back, where a checkpoint limits them


class RmsNorm(nn.Module):
    """transformers' own arithmetic: mean and root in float32, the weight in the network's type."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        theirs: Any = norm
        self.weight: Tensor = theirs.weight
        self.epsilon = float(theirs.variance_epsilon)

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.epsilon)
        return self.weight * wide.to(x.dtype)


class Block(nn.Module):
    """One layer, cut where tokens meet: what is before and after attention knows only tokens, (tokens, hidden).

    Flat, so that one compilation serves prefill and decode, whatever the number of rows.
    """

    def __init__(self, layer: nn.Module, shape: DecoderShape) -> None:
        super().__init__()
        theirs: Any = layer
        attention, mlp = theirs.self_attn, theirs.mlp
        self.heads, self.kv_heads, self.head_dim = shape.heads, shape.kv_heads, shape.head_dim
        self.before_attention = RmsNorm(theirs.input_layernorm)
        self.before_mlp = RmsNorm(theirs.post_attention_layernorm)
        self.qkv = join([attention.q_proj, attention.k_proj, attention.v_proj])
        self.out = join([attention.o_proj])
        self.gate_up = join([mlp.gate_proj, mlp.up_proj])
        self.down = join([mlp.down_proj])

    def project(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of every token, (tokens, heads, head_dim), the first two turned by position."""
        heads = self.qkv(self.before_attention(x)).view(len(x), -1, self.head_dim)
        queries, keys, values = heads.split([self.heads, self.kv_heads, self.kv_heads], dim=1)
        return _turn(queries, cos, sin), _turn(keys, cos, sin), values

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """The rest of the layer: output product, feed-forward, both added to what came in."""
        x = x + self.out(attended.flatten(1))
        gate, up = self.gate_up(self.before_mlp(x)).chunk(2, dim=-1)
        out: Tensor = x + self.down(silu(gate) * up)
        return out

    def quantise(self) -> None:
        """Replace the products by 8-bit ones."""
        for name in ("qkv", "out", "gate_up", "down"):
            setattr(self, name, Fp8Linear(getattr(self, name)))


class Decoder:
    """All blocks, with the embedding before them and the vocabulary's product after."""

    def __init__(self, network: LlavaNextForConditionalGeneration) -> None:
        text: Any = network.model.language_model
        self.shape = decoder_shape(text.config)
        self.embedding = text.embed_tokens
        self._layers = text.layers
        self.blocks = [Block(layer, self.shape) for layer in text.layers]
        self.norm = RmsNorm(text.norm)
        self.head = network.lm_head
        rotary = text.rotary_emb
        self.frequencies: Tensor = rotary.inv_freq
        self.rotary_scaling = float(rotary.attention_scaling)
        self._project: Callable[..., tuple[Tensor, Tensor, Tensor]] = Block.project
        self._finish: Callable[..., Tensor] = Block.finish

    @property
    def dtype(self) -> torch.dtype:
        """The type of what flows between the layers."""
        return self.norm.weight.dtype

    def compile_blocks(self) -> None:
        """Compile the two halves of a block, once for all layers and lengths, and alike in every process."""
        self._project = torch.compile(Block.project, dynamic=True, options=DETERMINISTIC)
        self._finish = torch.compile(Block.finish, dynamic=True, options=DETERMINISTIC)

    def embed(self, token_ids: Tensor) -> Tensor:
        """Ids to embeddings, one dimension more; an image's places hold a placeholder."""
        embeddings: Tensor = self.embedding(token_ids)
        return embeddings

    def quantise(self) -> None:
        """Make the products of all blocks 8-bit, layer by layer; the network that shares the weights lets go of its own
        and can no longer run."""
        for i, block in enumerate(self.blocks):
            block.quantise()
            self._layers[i] = nn.Identity()

    def rotary(self, capacity: int) -> tuple[Tensor, Tensor]:
        """Cosine and sine of every position's angles, each (capacity, head_dim)."""
        positions = torch.arange(capacity, device=self.frequencies.device).float()
        angles = positions[:, None] * self.frequencies.float()
        angles = torch.cat((angles, angles), dim=-1)
        cos, sin = angles.cos() * self.rotary_scaling, angles.sin() * self.rotary_scaling
        return cos.to(self.dtype), sin.to(self.dtype)

    def prefill(self, x: Tensor, ends: Tensor, slots: Tensor, cache: Cache) -> Tensor:
        """Run prompts, (rows, length, hidden), from their first token on, and keep their keys and values in `slots`;
        returns what became of the tokens at the (rows,) `ends`: (rows, hidden).

        A row begins at place 0 of its slot and its padding comes behind it: causality hides that from the row, so no
        mask is needed and no number of it depends on the padding. What the padding leaves behind a row in its slot is
        hidden from decoding by the row's length, and overwritten token by token.
        """
        rows, length, _ = x.shape
        positions = torch.arange(length, device=x.device).expand(rows, length)

        def attend(layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            cache.fill(layer, slots, keys, values)
            if queries.shape[1] == length:
                return causal(queries, keys, values)
            return cached(queries, keys.transpose(1, 2), values.transpose(1, 2), ends[:, None])

        return self._through(x, positions, ends, cache, attend)

    def extend(self, x: Tensor, starts: Tensor, ends: Tensor, slots: Tensor, cache: Cache, span: int) -> Tensor:
        """Run a few more tokens, (rows, length, hidden), of prompts whose beginning, `starts` long, their slots hold
        already; returns what became of the tokens at `ends` of those: (rows, hidden)."""
        length = x.shape[1]
        # Padding may reach beyond the slot; its last place is free for it, as no prompt fills a slot without an answer.
        positions = (starts[:, None] + torch.arange(length, device=x.device)).clamp(max=len(cache.cos) - 1)

        def attend(layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            cache.put(layer, slots, positions, (keys, values))
            places = positions if queries.shape[1] == length else (starts + ends)[:, None]
            return cached(queries, *cache.some(layer, slots, span), places)

        return self._through(x, positions, ends, cache, attend)

    def step(self, x: Tensor, positions: Tensor, cache: Cache, attend_slots: Attend, span: int) -> Tensor:
        """Run one more token of every slot, (slots, 1, hidden); returns what became of them, (slots, hidden)."""
        slots = torch.arange(len(x), device=x.device)

        def attend(layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            cache.put(layer, slots, positions, (keys, values))
            return attend_slots(queries, *cache.all(layer, span), positions)

        return self._through(x, positions, None, cache, attend)

    def _through(
        self, x: Tensor, positions: Tensor, ends: Tensor | None, cache: Cache, attend: Callable[..., Tensor]
    ) -> Tensor:
        """All layers; behind the last one's keys and values only the tokens at `ends` go on: no one reads others."""
        rows, length, _ = x.shape
        cos, sin = cache.cos[positions.flatten()], cache.sin[positions.flatten()]
        x = x.flatten(0, 1)
        for layer, block in enumerate(self.blocks):
            heads = self._project(block, x, cos, sin)
            queries, keys, values = (part.view(rows, length, -1, self.shape.head_dim) for part in heads)
            if ends is not None and layer == self.shape.layers - 1:
                row = torch.arange(rows, device=x.device)
                x, queries = x.view(rows, length, -1)[row, ends], queries[row, ends][:, None]
            x = self._finish(block, x, attend(layer, queries, keys, values).flatten(0, 1))
        return x

    def logits(self, hidden: Tensor) -> Tensor:
        """What the vocabulary scores after (rows, hidden): (rows, vocabulary)."""
        scores: Tensor = self.head(self.norm(hidden))
        return scores


def decoder_shape(config: PreTrainedConfig) -> DecoderShape:
    """The shape in a text config; raises ValueError for a network that this block is not."""
    text: Any = config
    if text.model_type not in BACKBONES:
        raise ValueError(f"the text backbone must be one of {', '.join(BACKBONES)}, got {text.model_type!r}")
    if text.hidden_act != "silu":
        raise ValueError(f"the text backbone's hidden_act must be silu, got {text.hidden_act!r}")
    rope = (text.rope_parameters or {}).get("rope_type", "default")
    if rope not in ROPE_TYPES:
        raise ValueError(f"the text backbone's rope_type must be one of {', '.join(ROPE_TYPES)}, got {rope!r}")
    slides = getattr(text, "use_sliding_window", True)
    return DecoderShape(
        layers=text.num_hidden_layers,
        heads=text.num_attention_heads,
        kv_heads=text.num_key_value_heads,
        head_dim=getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads,
        hidden=text.hidden_size,
        intermediate=text.intermediate_size,
        context=text.max_position_embeddings,
        window=getattr(text, "sliding_window", None) if slides else None,
    )


def _turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn (tokens, heads, head_dim) by the angles of the tokens' positions."""
    first, second = x.chunk(2, dim=-1)
    return x * cos[:, None] + torch.cat((-second, first), dim=-1) * sin[:, None]
