"""Where tokens that run together stand: in their prompts, in the batch and in their slots."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline.engine.device import to_device
from schemas.engine import BLOCK
from schemas.sample import TokenIds


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """Tokens of a prompt in a row; their keys and values go to the slot of every row that has them."""

    token_ids: TokenIds
    prefix: TokenIds  # the job's, before them: run once for all rows; its keys and values are in their slots already
    first: int  # the place of the first of them in the batch
    width: int  # places, the padding behind them included
    start: int  # the position of the first of them in its prompt
    slots: tuple[int, ...]
    ends: bool  # whether the prompt ends here, so that a token is drawn behind it

    @property
    def goes_on(self) -> bool:
        """Whether it attends to what another segment of its batch puts into its slot."""
        return self.start > len(self.prefix)

    @property
    def end(self) -> int:
        """The position in its prompt of what follows."""
        return self.start + len(self.token_ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class Blocks:
    """Tokens that attend to what their slots hold, `width` of one prompt in a row a block; all are (blocks,)."""

    firsts: Tensor  # the place of a block's first token
    slots: Tensor
    positions: Tensor  # of that token in its slot
    width: int

    def to(self, device: torch.device) -> "Blocks":
        firsts, slots, positions = (one.to(device) for one in (self.firsts, self.slots, self.positions))
        return Blocks(firsts=firsts, slots=slots, positions=positions, width=self.width)


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Where the tokens of a batch stand, for the device."""

    segments: tuple[Segment, ...]
    positions: Tensor  # (places,)
    blocks: Blocks | None  # of the segments that go on from what their slots hold
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
            blocks=None if self.blocks is None else self.blocks.to(device),
            wanted=self.wanted.to(device),
            drawn=self.drawn.to(device),
        )


def layout(
    segments: tuple[Segment, ...], *, num_places: int, num_drawn: int, capacity: int, device: torch.device
) -> Layout:
    """The numbers of a batch's segments on the device, for slots of `capacity` places."""
    positions = np.zeros(num_places, np.int64)
    for segment in segments:  # padding may reach beyond the slot, where there are no angles for it
        own = np.arange(segment.start, segment.start + segment.width)
        positions[segment.first : segment.first + segment.width] = own.clip(max=capacity - 1)
    later = [
        (segment.first + i, segment.slots[0], segment.start + i)
        for segment in segments
        if segment.goes_on
        for i in range(0, segment.width, BLOCK)
    ]
    wanted = np.zeros(num_drawn, np.int64)
    ends = [(segment.first + len(segment.token_ids) - 1, segment) for segment in segments if segment.ends]
    wanted[: len(ends)] = [place for place, _ in ends]
    return Layout(
        segments=segments,
        positions=to_device(positions, device),
        blocks=_blocks(later, BLOCK, device) if later else None,
        wanted=to_device(wanted, device),
        drawn=_blocks([(i, one.slots[0], one.end - 1) for i, (_, one) in enumerate(ends)], 1, device),
    )


def _blocks(found: Sequence[tuple[int, int, int]], width: int, device: torch.device) -> Blocks:
    firsts, slots, positions = to_device(np.array(found, np.int64).reshape(-1, 3).T.copy(), device)
    return Blocks(firsts=firsts, slots=slots, positions=positions, width=width)


def round_up(length: int, multiple: int) -> int:
    """The smallest multiple that is not below the length."""
    return -(-length // multiple) * multiple
