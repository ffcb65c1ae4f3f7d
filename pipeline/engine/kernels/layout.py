"""Where tokens that run together stand: in their prompts, in the batch and in the cache."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline.engine.kernels.device import to_device
from pipeline.engine.kernels.pages import Ints, Seat, num_pages
from schemas.engine import BLOCK
from schemas.sample import TokenIds


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """Tokens of a prompt in a row; their keys and values go to the pages of every row that has them."""

    token_ids: TokenIds
    prefix: TokenIds  # the job's, before them: run once for all rows; its keys and values are in their pages already
    first: int  # the place of the first of them in the batch
    width: int  # places, the padding behind them included
    start: int  # the position of the first of them in its prompt
    seats: tuple[Seat, ...]
    ends: bool  # whether the prompt ends here, so that a token is drawn behind it

    @property
    def goes_on(self) -> bool:
        """Whether it attends to what another segment of its batch puts into its row's pages."""
        return self.start > len(self.prefix)

    @property
    def end(self) -> int:
        """The position in its prompt of what follows."""
        return self.start + len(self.token_ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class Blocks:
    """Tokens that attend to what the cache holds of their rows, `width` of one prompt in a row a block."""

    firsts: Tensor  # (blocks,) the place of a block's first token
    tables: Tensor  # (blocks, pages) the pages of its row
    positions: Tensor  # (blocks,) of that token in its prompt
    width: int

    def to(self, device: torch.device) -> "Blocks":
        firsts, tables, positions = (one.to(device) for one in (self.firsts, self.tables, self.positions))
        return Blocks(firsts=firsts, tables=tables, positions=positions, width=self.width)


@dataclass(frozen=True, slots=True, kw_only=True)
class Moves:
    """Whose keys and values go where; both are (moves,)."""

    sources: Tensor  # places in the batch
    targets: Tensor  # places in the cache

    def to(self, device: torch.device) -> "Moves":
        return Moves(sources=self.sources.to(device), targets=self.targets.to(device))


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Where the tokens of a batch stand, for the device."""

    segments: tuple[Segment, ...]
    positions: Tensor  # (places,)
    moves: Moves  # of all their tokens
    tables: Tensor  # (segments, pages) the pages of a segment's first row
    blocks: Blocks | None  # of the segments that go on from what other segments put there
    wanted: Tensor  # (drawn,) the places that a token is drawn after, and place 0 where there are fewer
    drawn: Blocks  # those places, among themselves

    @property
    def num_used(self) -> int:
        """Places up to the end of the last segment."""
        return self.segments[-1].first + self.segments[-1].width

    def to(self, device: torch.device) -> "Layout":
        return Layout(
            segments=self.segments,
            positions=self.positions.to(device),
            moves=self.moves.to(device),
            tables=self.tables.to(device),
            blocks=None if self.blocks is None else self.blocks.to(device),
            wanted=self.wanted.to(device),
            drawn=self.drawn.to(device),
        )


def layout(
    segments: tuple[Segment, ...], *, num_places: int, num_drawn: int, capacity: int, device: torch.device
) -> Layout:
    """The numbers of a batch's segments on the device, for rows of at most `capacity` tokens."""
    positions = np.zeros(num_places, np.int64)
    for segment in segments:  # padding may reach beyond the capacity, where there are no angles for it
        own = np.arange(segment.start, segment.start + segment.width)
        positions[segment.first : segment.first + segment.width] = own.clip(max=capacity - 1)
    tables = np.stack([segment.seats[0].table(num_pages(capacity)) for segment in segments])
    later = [
        (segment.first + i, number, segment.start + i)
        for number, segment in enumerate(segments)
        if segment.goes_on
        for i in range(0, segment.width, BLOCK)
    ]
    wanted = np.zeros(num_drawn, np.int64)
    ends = [(number, segment) for number, segment in enumerate(segments) if segment.ends]
    wanted[: len(ends)] = [segment.first + len(segment.token_ids) - 1 for _, segment in ends]
    drawn = [(i, number, segment.end - 1) for i, (number, segment) in enumerate(ends)]
    return Layout(
        segments=segments,
        positions=to_device(positions, device),
        moves=_moves(segments, device),
        tables=to_device(tables, device),
        blocks=_blocks(later, tables, BLOCK, device) if later else None,
        wanted=to_device(wanted, device),
        drawn=_blocks(drawn, tables, 1, device),
    )


def moves_to(seats: Sequence[Seat], start: int, end: int, first: int = 0) -> Ints:
    """Return sources and targets, (2, moves), of a prompt's positions that stand in the batch from place `first` on, to
    each of these rows."""
    sources = np.tile(np.arange(first, first + end - start), len(seats))
    return np.stack([sources, np.concatenate([seat.places(start, end) for seat in seats])])


def _moves(segments: Sequence[Segment], device: torch.device) -> Moves:
    own = [moves_to(one.seats, one.start, one.end, one.first) for one in segments]
    sources, targets = to_device(np.concatenate(own, axis=1), device)
    return Moves(sources=sources, targets=targets)


def _blocks(found: Sequence[tuple[int, int, int]], tables: Ints, width: int, device: torch.device) -> Blocks:
    """`found` has every block's first place, the number of its segment and the position."""
    numbers = np.array(found, np.int64).reshape(-1, 3)
    firsts, positions = to_device(numbers[:, ::2].T.copy(), device)
    return Blocks(firsts=firsts, tables=to_device(tables[numbers[:, 1]], device), positions=positions, width=width)


def round_up(length: int, multiple: int) -> int:
    """The smallest multiple that is not below the length."""
    return -(-length // multiple) * multiple
