"""The text network: one block for mistral, llama and qwen2, over the weights that transformers loaded."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.functional import silu
from transformers import LlavaNextForConditionalGeneration, PreTrainedConfig

from pipeline.engine.attention import Attend, causal, causal_behind_prefix
from pipeline.engine.cache import Cache
from pipeline.engine.device import Lanes
from pipeline.engine.linear import Fp8Linear, join
from pipeline.engine.places import Blocks, Layout, Segment
from pipeline.engine.spread import moved, spread

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
        out: Tensor = x + self.down(self.feed(x))
        return out

    def feed(self, x: Tensor) -> Tensor:
        """What the last product of the feed-forward takes, (tokens, intermediate)."""
        gate, up = self.gate_up(self.before_mlp(x)).chunk(2, dim=-1)
        fed: Tensor = silu(gate) * up
        return fed

    def add_to(self, x: Tensor) -> tuple[Tensor, Tensor] | None:
        """The two weights whose products can be added to what came in where it stands: that saves a GPU a copy of it
        for each. None where it saves nothing, or where the products are quantised or have more to add."""
        weights = [_plain_weight(one) for one in (self.out, self.down)]
        return (weights[0], weights[1]) if x.is_cuda and weights[0] is not None and weights[1] is not None else None

    def quantise(self) -> None:
        """Replace the products by 8-bit ones."""
        for name in ("qkv", "out", "gate_up", "down"):
            setattr(self, name, Fp8Linear(getattr(self, name)))


# number of the part, layer, queries, keys, values -> attended
_AttendAt: TypeAlias = Callable[[int, int, Tensor, Tensor, Tensor], Tensor]


class Decoder:
    """All blocks, with the embedding before them and the vocabulary's product after.

    The blocks are spread over the devices in order; what is passed in and what comes out is on the first of them.
    """

    def __init__(
        self, network: LlavaNextForConditionalGeneration, devices: Sequence[torch.device], *, fp8: bool = False
    ) -> None:
        text: Any = network.model.language_model
        self.shape = decoder_shape(text.config)
        self.parts = spread(self.shape.layers, devices)
        self.embedding = text.embed_tokens
        self.blocks = self._take(text.layers, fp8=fp8)
        self.norm = RmsNorm(text.norm)
        self.head = network.lm_head
        rotary = text.rotary_emb
        self.frequencies: Tensor = rotary.inv_freq
        self.rotary_scaling = float(rotary.attention_scaling)
        self._project: Callable[..., tuple[Tensor, Tensor, Tensor]] = Block.project
        self._finish: Callable[..., Tensor] = Block.finish
        self._feed: Callable[..., Tensor] = Block.feed
        self._lanes = [Lanes(part.device) for part in self.parts]

    def _take(self, layers: nn.ModuleList, *, fp8: bool) -> list[Block]:
        """The layers as blocks, each on its device before the next is looked at. In 8 bits the network that shares the
        weights lets go of its own, layer by layer, and can no longer run."""
        devices = [part.device for part in self.parts for _ in part.layers]
        blocks = []
        for i, (layer, device) in enumerate(zip(layers, devices, strict=True)):
            block = Block(moved(layer, device), self.shape)
            if fp8:
                block.quantise()
                layers[i] = nn.Identity()
            blocks.append(block)
        return blocks

    @property
    def dtype(self) -> torch.dtype:
        """The type of what flows between the layers."""
        return self.norm.weight.dtype

    def compile_blocks(self) -> None:
        """Compile the two halves of a block, once for all lengths and for all layers of a device, and alike in every
        process."""
        limit = 8 * len(self.parts)  # as torch has it for one device
        torch._dynamo.config.recompile_limit = max(limit, torch._dynamo.config.recompile_limit)
        self._project = torch.compile(Block.project, dynamic=True, options=DETERMINISTIC)
        self._finish = torch.compile(Block.finish, dynamic=True, options=DETERMINISTIC)
        self._feed = torch.compile(Block.feed, dynamic=True, options=DETERMINISTIC)

    def embed(self, token_ids: Tensor) -> Tensor:
        """Ids to embeddings, one dimension more; an image's places hold a placeholder."""
        embeddings: Tensor = self.embedding(token_ids)
        return embeddings

    def rotary(self, capacity: int) -> tuple[Tensor, Tensor]:
        """Cosine and sine of every position's angles, each (capacity, head_dim)."""
        positions = torch.arange(capacity, device=self.frequencies.device).float()
        angles = positions[:, None] * self.frequencies.float()
        angles = torch.cat((angles, angles), dim=-1)
        cos, sin = angles.cos() * self.rotary_scaling, angles.sin() * self.rotary_scaling
        return cos.to(self.dtype), sin.to(self.dtype)

    def prefill(self, x: Tensor, layout: Layout, cache: Cache, attend_slots: Attend) -> Tensor:
        """Run the segments of a batch, (places, hidden), and keep their keys and values in their slots; returns what
        became of the tokens that others are drawn after, (drawn, hidden).

        A segment's padding comes behind it: causality hides that from it, so no number of it depends on the padding,
        and none on the other segments, as nothing but attention knows of more than one token.
        """
        here = [layout.to(part.device) for part in self.parts]

        def attend(part: int, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            own, stored = here[part], cache.of(layer)
            if layer == self.shape.layers - 1:
                cache.fill(layer, own.segments, keys, values)
                out = torch.zeros_like(queries, memory_format=torch.contiguous_format)
                attend_slots(queries.contiguous(), *stored, own.drawn, out)
                return out
            out = torch.empty_like(queries, memory_format=torch.contiguous_format)
            out[own.num_used :] = 0

            def attend_one(segment: Segment) -> None:
                places = slice(segment.first, segment.first + segment.width)
                if len(segment.prefix):
                    cache.fill(layer, [segment], keys, values)
                    out[places] = causal_behind_prefix(queries, *stored, segment)
                else:
                    out[places] = causal(queries[places], keys[places], values[places])

            others = [segment for segment in own.segments if not len(segment.prefix)]
            whole = [partial(attend_one, segment) for segment in own.segments if not segment.goes_on]
            self._lanes[part].run([partial(cache.fill, layer, others, keys, values), *whole])
            if own.blocks is not None:
                attend_slots(queries.contiguous(), *stored, own.blocks, out)
            return out

        return self._through(x, layout.positions, cache, attend, layout.wanted)

    def step(self, x: Tensor, positions: Tensor, cache: Cache, attend_slots: Attend) -> Tensor:
        """Run one more token of every slot, (rows, hidden) with (rows,) positions in the slots' order; returns what
        became of them. Rows behind the slots' are nobody's."""
        slots = torch.arange(cache.shape.slots, device=x.device)
        blocks = Blocks(firsts=slots, slots=slots, positions=positions[: len(slots)], width=1)
        here = [blocks.to(part.device) for part in self.parts]

        def attend(part: int, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            cache.put(layer, here[part], keys[: len(slots)], values[: len(slots)])
            out = torch.zeros_like(queries, memory_format=torch.contiguous_format)
            attend_slots(queries.contiguous(), *cache.of(layer), here[part], out)
            return out

        return self._through(x, positions, cache, attend)

    def _through(
        self, x: Tensor, positions: Tensor, cache: Cache, attend: _AttendAt, wanted: Tensor | None = None
    ) -> Tensor:
        """All layers of (tokens, hidden); behind the last one's keys and values only the tokens at the `wanted` places
        go on: nobody reads the others."""
        home = x.device
        for number, part in enumerate(self.parts):
            x = x.to(part.device)
            cos, sin = cache.angles(number, positions.to(part.device))
            for layer in part.layers:
                block = self.blocks[layer]
                queries, keys, values = self._project(block, x, cos, sin)
                if wanted is not None and layer == self.shape.layers - 1:
                    x, queries = (one[wanted.to(part.device)] for one in (x, queries))
                x = self._finished(block, x, attend(number, layer, queries, keys, values))
        return x.to(home)

    def _finished(self, block: Block, x: Tensor, attended: Tensor) -> Tensor:
        """The end of a layer; `x` may be changed."""
        weights = block.add_to(x)
        if weights is None:
            return self._finish(block, x, attended)
        x.addmm_(attended.flatten(1), weights[0].t())
        return x.addmm_(self._feed(block, x), weights[1].t())

    def logits(self, hidden: Tensor) -> Tensor:
        """What the vocabulary scores after (rows, hidden): (rows, vocabulary)."""
        scores: Tensor = self.head(self.norm(hidden.to(self.parts[-1].device)))
        return scores.to(hidden.device)


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


def _plain_weight(layer: nn.Module) -> Tensor | None:
    """The weight of a layer that is a product with it and nothing else; bitsandbytes' are subclasses of Linear."""
    weight: Tensor | None = getattr(layer, "weight", None) if type(layer) is nn.Linear else None
    return weight if getattr(layer, "bias", None) is None else None


def _turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn (tokens, heads, head_dim) by the angles of the tokens' positions."""
    first, second = x.chunk(2, dim=-1)
    return x * cos[:, None] + torch.cat((-second, first), dim=-1) * sin[:, None]
