"""The text network: one block for mistral, llama and qwen2, over the weights that transformers loaded."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from transformers import LlavaNextForConditionalGeneration, PreTrainedConfig

from pipeline.engine.kernels.device import Lanes
from pipeline.engine.kernels.interface import Fused, sequences
from pipeline.engine.kernels.layout import Blocks, Layout, Moves, Segment
from pipeline.engine.kernels.pages import PAGE
from pipeline.engine.kernels.torch_attention import Attend, causal, causal_behind_prefix
from pipeline.engine.network.block import Block, DecoderShape, Halves, RmsNorm
from pipeline.engine.network.kv_cache import Cache
from pipeline.engine.network.partition import moved, spread
from pipeline.preprocess.facts import attention_window
from schemas.errors import Refused

BACKBONES = ("llama", "mistral", "qwen2")
# How they stretch the rotary angles: all but those that change with the length of a prompt while it runs.
ROPE_TYPES = ("default", "linear", "llama3", "yarn")

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
        self._halves = Halves()
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
        """Compile the two halves of a block."""
        self._halves.compile(len(self.parts))

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

    def prefill(
        self, x: Tensor, layout: Layout, cache: Cache, attend_pages: Attend, fused: Fused | None = None
    ) -> Tensor:
        """Run the segments of a batch, (places, hidden), and keep their keys and values in their pages; returns what
        became of the tokens that others are drawn after, (drawn, hidden).

        A segment's padding comes behind it: causality hides that from it, so no number of it depends on the padding,
        and none on the other segments, as nothing but attention knows of more than one token.
        """
        here = [layout.to(part.device) for part in self.parts]
        alone = [sequences(own.segments, len(x), own.positions.device) for own in here] if fused else []

        def attend(part: int, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            own, stored = here[part], cache.of(layer)
            cache.fill(layer, own.moves, keys, values)
            if layer == self.shape.layers - 1:
                out = torch.zeros_like(queries, memory_format=torch.contiguous_format)
                attend_pages(queries.contiguous(), *stored, own.drawn, out)
                return out
            if fused is None:
                out = torch.empty_like(queries, memory_format=torch.contiguous_format)
            else:
                out = fused.causal_each(queries, keys, values, alone[part])
            out[own.num_used :] = 0

            def attend_one(segment: Segment, table: Tensor) -> None:
                places = slice(segment.first, segment.first + segment.width)
                if len(segment.prefix):
                    kernel = fused.causal if fused else causal
                    out[places] = causal_behind_prefix(queries, stored, table, segment, kernel)
                else:
                    out[places] = causal(queries[places], keys[places], values[places])

            rows = zip(own.segments, own.tables, strict=True)
            left = [one for one in rows if len(one[0].prefix) or (fused is None and not one[0].goes_on)]
            self._lanes[part].run(partial(attend_one, *one) for one in left)
            if own.blocks is not None:
                attend_pages(queries.contiguous(), *stored, own.blocks, out)
            return out

        return self._through(x, layout.positions, cache, attend, layout.wanted, fused)

    def step(self, x: Tensor, positions: Tensor, tables: Tensor, cache: Cache, attend_pages: Attend) -> Tensor:
        """Run one more token of every slot, (rows, hidden) with (rows,) positions in the slots' order, whose pages are
        in `tables`, (slots, pages); returns what became of them. Rows behind the slots' are nobody's."""
        slots, own = torch.arange(len(tables), device=x.device), positions[: len(tables)]
        pages = tables.gather(1, (own // PAGE)[:, None])[:, 0]
        moves = Moves(sources=slots, targets=pages * PAGE + own % PAGE)
        blocks = Blocks(firsts=slots, tables=tables, positions=own, width=1)
        here = [(moves.to(part.device), blocks.to(part.device)) for part in self.parts]

        def attend(part: int, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            targets, queried = here[part]
            cache.fill(layer, targets, keys, values)
            out = torch.zeros_like(queries, memory_format=torch.contiguous_format)
            attend_pages(queries.contiguous(), *cache.of(layer), queried, out)
            return out

        return self._through(x, positions, cache, attend)

    def _through(
        self,
        x: Tensor,
        positions: Tensor,
        cache: Cache,
        attend: _AttendAt,
        wanted: Tensor | None = None,
        fused: Fused | None = None,
    ) -> Tensor:
        """All layers of (tokens, hidden); behind the last one's keys and values only the tokens at the `wanted` places
        go on: nobody reads the others."""
        home = x.device
        for number, part in enumerate(self.parts):
            x = x.to(part.device)
            cos, sin = cache.angles(number, positions.to(part.device))
            for layer in part.layers:
                block = self.blocks[layer]
                queries, keys, values = self._halves.project(block, x, cos, sin, fused)
                if wanted is not None and layer == self.shape.layers - 1:
                    x, queries = (one[wanted.to(part.device)] for one in (x, queries))
                    fused = None  # for so few
                x = self._halves.finish(block, x, attend(number, layer, queries, keys, values), fused)
        return x.to(home)

    def logits(self, hidden: Tensor) -> Tensor:
        """What the vocabulary scores after (rows, hidden): (rows, vocabulary)."""
        scores: Tensor = self.head(self.norm(hidden.to(self.parts[-1].device)))
        return scores.to(hidden.device)


def decoder_shape(config: PreTrainedConfig) -> DecoderShape:
    """The shape in a text config; raises ValueError for a network that this block is not."""
    text: Any = config
    if text.model_type not in BACKBONES:
        raise Refused(f"the text backbone must be one of {', '.join(BACKBONES)}, got {text.model_type!r}")
    if text.hidden_act != "silu":
        raise Refused(f"the text backbone's hidden_act must be silu, got {text.hidden_act!r}")
    rope = (text.rope_parameters or {}).get("rope_type", "default")
    if rope not in ROPE_TYPES:
        raise Refused(f"the text backbone's rope_type must be one of {', '.join(ROPE_TYPES)}, got {rope!r}")
    return DecoderShape(
        layers=text.num_hidden_layers,
        heads=text.num_attention_heads,
        kv_heads=text.num_key_value_heads,
        head_dim=getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads,
        hidden=text.hidden_size,
        intermediate=text.intermediate_size,
        context=text.max_position_embeddings,
        window=attention_window(config),
    )
