"""The text network: one block for mistral, llama and qwen2, over the weights that transformers loaded."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlavaNextForConditionalGeneration, PreTrainedConfig

from pipeline.engine.kernels.device import Streams
from pipeline.engine.kernels.interface import Fused
from pipeline.engine.kernels.layout import Layout, Moves, QueryBlocks
from pipeline.engine.kernels.pages import PAGE
from pipeline.engine.kernels.torch_attention import Attend
from pipeline.engine.network.block import Block, DecoderShape, LayerRunner, RmsNorm
from pipeline.engine.network.kv_cache import KVCache
from pipeline.engine.network.partition import move, partition
from pipeline.engine.network.prefill_attention import PrefillAttention
from pipeline.preprocess.facts import attention_window
from schemas.errors import Refused

BACKBONES = ("llama", "mistral", "qwen2")
# How they stretch the rotary angles: all ways but those that depend on the length of a prompt while it runs.
ROPE_TYPES = ("default", "linear", "llama3", "yarn")


class Decoder:
    """All blocks, with the embedding before them and the product with the vocabulary after.

    The blocks are shared between the devices in order, see `partition`: the embedding is on the first of them, the
    product with the vocabulary on the last. A part runs by its number, so that what runs where is its caller's to say.
    """

    def __init__(
        self, network: LlavaNextForConditionalGeneration, devices: Sequence[torch.device], *, fp8: bool = False
    ) -> None:
        text: Any = network.model.language_model
        self.shape = decoder_shape(text.config)
        self.parts = partition(self.shape.layers, devices)
        self.embedding = text.embed_tokens
        self.blocks = self._take(text.layers, fp8=fp8)
        self.norm = RmsNorm(text.norm)
        self.head = network.lm_head
        rotary = text.rotary_emb
        self.frequencies: Tensor = rotary.inv_freq
        self.rotary_scaling = float(rotary.attention_scaling)
        self._layers = LayerRunner()
        self._streams = [Streams(part.device) for part in self.parts]

    def _take(self, layers: nn.ModuleList, *, fp8: bool) -> list[Block]:
        """Make blocks of the layers, each moved to its device before the next is looked at.

        In 8 bits the network that shares the weights lets go of its own, layer by layer, and can no longer run.
        """
        devices = [part.device for part in self.parts for _ in part.layers]
        blocks = []
        for i, (layer, device) in enumerate(zip(layers, devices, strict=True)):
            block = Block(move(layer, device), self.shape)
            if fp8:
                block.quantise()
                layers[i] = nn.Identity()
            blocks.append(block)
        return blocks

    @property
    def dtype(self) -> torch.dtype:
        """Return the type of what flows between the layers."""
        return self.norm.weight.dtype

    def compile_blocks(self) -> None:
        """Compile what runs of a block before attention and after it."""
        self._layers.compile(len(self.parts))

    def embed(self, token_ids: Tensor) -> Tensor:
        """Look up embeddings, (..., hidden); those of image tokens are placeholders."""
        embeddings: Tensor = self.embedding(token_ids)
        return embeddings

    def rotary(self, num_positions: int) -> tuple[Tensor, Tensor]:
        """Return cosine and sine of every position's angles, each (positions, head_dim)."""
        positions = torch.arange(num_positions, device=self.frequencies.device).float()
        angles = positions[:, None] * self.frequencies.float()
        angles = torch.cat((angles, angles), dim=-1)
        cos, sin = angles.cos() * self.rotary_scaling, angles.sin() * self.rotary_scaling
        return cos.to(self.dtype), sin.to(self.dtype)

    def prefill(
        self,
        number: int,
        x: Tensor,
        layout: Layout,
        cache: KVCache,
        attend_pages: Attend,
        fused: Fused | None = None,
    ) -> Tensor:
        """Run a part's layers over the segments of a batch, (padded tokens, hidden); write keys and values to pages.

        Returns the states behind them, and behind the last part only those of the tokens that others are sampled after,
        (sampled, hidden). `x` and the layout are on the part's device.

        A segment's padding is behind it, where causality hides it: no number of a segment depends on the padding, and
        none on other segments, as nothing but attention combines tokens.
        """
        attend = PrefillAttention(layout, len(x), attend_pages, fused, self._streams[number])
        angles = cache.angles(number, layout.positions)
        for layer in self.parts[number].layers:
            block = self.blocks[layer]
            queries, keys, values = self._layers.project(block, x, *angles, fused)
            cache.write(layer, layout.moves, keys, values)
            if layer < self.shape.layers - 1:
                attended = attend.all_tokens(queries, keys, values, cache.of(layer))
                x = self._layers.finish(block, x, attended, fused)
            else:  # Nobody reads the last layer's other states. For so few there is no gain in fused kernels.
                attended = attend.sampled_tokens(queries[layout.sampled], cache.of(layer))
                x = self._layers.finish(block, x[layout.sampled], attended, None)
        return x

    def step(
        self, number: int, x: Tensor, positions: Tensor, tables: Tensor, cache: KVCache, attend_pages: Attend
    ) -> Tensor:
        """Run a part's layers over one more token of every slot, (rows, hidden); return the states behind them.

        `x` is in the order of the slots, `positions` (rows,), and `tables`, (slots, pages), has the pages of every
        slot; all are on the part's device. Rows behind those of the slots are padding.
        """
        slots, own = torch.arange(len(tables), device=x.device), positions[: len(tables)]
        pages = tables.gather(1, (own // PAGE)[:, None])[:, 0]
        moves = Moves(sources=slots, targets=pages * PAGE + own % PAGE)
        blocks = QueryBlocks(firsts=slots, tables=tables, positions=own, width=1)
        angles = cache.angles(number, positions)
        for layer in self.parts[number].layers:
            block = self.blocks[layer]
            queries, keys, values = self._layers.project(block, x, *angles, None)
            cache.write(layer, moves, keys, values)
            attended = torch.zeros_like(queries, memory_format=torch.contiguous_format)
            attend_pages(queries.contiguous(), *cache.of(layer), blocks, attended)
            x = self._layers.finish(block, x, attended, None)
        return x

    def logits(self, hidden: Tensor) -> Tensor:
        """Score the vocabulary after the last part's states, (rows, hidden): (rows, vocabulary)."""
        scores: Tensor = self.head(self.norm(hidden))
        return scores


def decoder_shape(config: PreTrainedConfig) -> DecoderShape:
    """Read the shape from a text config; raises Refused for a network that Block does not compute."""
    text: Any = config
    if text.model_type not in BACKBONES:
        raise Refused(f"the text backbone must be one of {', '.join(BACKBONES)}, got {text.model_type!r}")
    if text.hidden_act != "silu":
        raise Refused(f"the text backbone's hidden_act must be silu, got {text.hidden_act!r}")
    _check_rope(text.rope_parameters or {})
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


def _check_rope(told: Mapping[str, Any]) -> None:
    """Raise Refused for rotary angles that Block does not turn by."""
    rope, share = told.get("rope_type", "default"), told.get("partial_rotary_factor") or 1.0
    if rope not in ROPE_TYPES:
        raise Refused(f"the text backbone's rope_type must be one of {', '.join(ROPE_TYPES)}, got {rope!r}")
    if rope != "default" and share != 1:  # without a stretch none of the backbones looks at it
        raise Refused(f"the text backbone's partial_rotary_factor must be 1 with rope_type {rope}, got {share}")
