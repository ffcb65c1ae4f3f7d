"""Indices of a batch's tokens: in their prompts, in the batch and in the cache."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline.engine.kernels.device import to_device
from pipeline.engine.kernels.pages import Allocation, Ints, num_pages
from schemas.engine import BLOCK
from schemas.sample import TokenIds


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """Consecutive tokens of a prompt; their keys and values go to the pages of every sequence that has them."""

    token_ids: TokenIds
    prefix: TokenIds  # of the job, before them: run once for all; its keys and values are in the pages already
    first: int  # the index of the first of them in the batch
    width: int  # tokens in the batch, the padding behind them included
    start: int  # the position of the first of them in its prompt
    allocations: tuple[Allocation, ...]
    ends: bool  # whether the prompt ends here, so that a token is sampled behind it

    @property
    def continues(self) -> bool:
        """Tell whether it attends to what another segment of its batch writes to its sequence's pages."""
        return self.start > len(self.prefix)

    @property
    def end(self) -> int:
        """Return the position in its prompt of what follows."""
        return self.start + len(self.token_ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class QueryBlocks:
    """Tokens that attend to the cached keys of their sequences: each block is `width` neighbours of one prompt."""

    firsts: Tensor  # (blocks,) the index in the batch of a block's first token
    tables: Tensor  # (blocks, pages) the pages of its sequence
    positions: Tensor  # (blocks,) the position of that token in its prompt
    width: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Moves:
    """Writes to the cache: the keys and values of which tokens go to which entries; both are (moves,)."""

    sources: Tensor  # indices in the batch
    targets: Tensor  # indices in the cache


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """The indices of a batch, on the device."""

    segments: tuple[Segment, ...]
    positions: Tensor  # (padded tokens,)
    moves: Moves  # of all tokens but padding
    tables: Tensor  # (segments, pages) the pages of a segment's first sequence
    continuing: QueryBlocks | None  # of the segments that continue others
    sampled: Tensor  # (sampled,) the tokens that another is sampled after; filled up with index 0
    sampled_blocks: QueryBlocks  # those tokens, one by one; their indices are those in `sampled`

    @property
    def num_used(self) -> int:
        """Return the number of tokens up to the end of the last segment, its padding included."""
        return self.segments[-1].first + self.segments[-1].width


def layout(
    segments: tuple[Segment, ...],
    *,
    num_padded_tokens: int,
    num_sampled: int,
    max_sequence_length: int,
    device: torch.device,
) -> Layout:
    """Compute the indices of a batch of segments, and copy them to the device."""
    positions = np.zeros(num_padded_tokens, np.int64)
    for segment in segments:  # padding may reach beyond the longest sequence, where there are no angles for it
        own = np.arange(segment.start, segment.start + segment.width)
        positions[segment.first : segment.first + segment.width] = own.clip(max=max_sequence_length - 1)
    tables = np.stack([segment.allocations[0].page_table(num_pages(max_sequence_length)) for segment in segments])
    continuing = [
        (segment.first + i, number, segment.start + i)
        for number, segment in enumerate(segments)
        if segment.continues
        for i in range(0, segment.width, BLOCK)
    ]
    sampled = np.zeros(num_sampled, np.int64)
    ends = [(number, segment) for number, segment in enumerate(segments) if segment.ends]
    sampled[: len(ends)] = [segment.first + len(segment.token_ids) - 1 for _, segment in ends]
    last = [(i, number, segment.end - 1) for i, (number, segment) in enumerate(ends)]
    return Layout(
        segments=segments,
        positions=to_device(positions, device),
        moves=_moves(segments, device),
        tables=to_device(tables, device),
        continuing=_blocks(continuing, tables, BLOCK, device) if continuing else None,
        sampled=to_device(sampled, device),
        sampled_blocks=_blocks(last, tables, 1, device),
    )


def moves_to(allocations: Sequence[Allocation], start: int, end: int, first: int = 0) -> Ints:
    """Return sources and targets, (2, moves), that write a prompt's positions to the pages of each of these sequences;
    in the batch the positions begin at index `first`."""
    sources = np.tile(np.arange(first, first + end - start), len(allocations))
    return np.stack([sources, np.concatenate([one.cache_indices(start, end) for one in allocations])])


def _moves(segments: Sequence[Segment], device: torch.device) -> Moves:
    own = [moves_to(one.allocations, one.start, one.end, one.first) for one in segments]
    sources, targets = to_device(np.concatenate(own, axis=1), device)
    return Moves(sources=sources, targets=targets)


def _blocks(found: Sequence[tuple[int, int, int]], tables: Ints, width: int, device: torch.device) -> QueryBlocks:
    """Make blocks of triples: the index of the first token, the number of its segment, the token's position."""
    numbers = np.array(found, np.int64).reshape(-1, 3)
    firsts, positions = to_device(numbers[:, ::2].T.copy(), device)
    return QueryBlocks(firsts=firsts, tables=to_device(tables[numbers[:, 1]], device), positions=positions, width=width)


def round_up(length: int, multiple: int) -> int:
    """Return the smallest multiple that is not below the length."""
    return -(-length // multiple) * multiple
