"""What one prefill runs: prompts, or the parts of them that several share, side by side in a fixed number of places."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.engine.kernels.layout import Segment, round_up
from pipeline.engine.kernels.pages import Seat
from pipeline.engine.sequence import PrefillGroup, Row
from schemas.sample import TokenIds

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Segments, one behind the other from place 0 on; the places behind them are nobody's.

    `rows` are those whose prompts end here, in the order of the segments that end one.
    """

    segments: tuple[Segment, ...]
    rows: tuple[Row, ...]
    num_places: int

    @property
    def token_ids(self) -> Ints:
        """The token at every place, (places,)."""
        found = np.zeros(self.num_places, np.int64)
        for segment in self.segments:
            found[segment.first : segment.first + len(segment.token_ids)] = segment.token_ids
        return found

    @property
    def endings(self) -> list[Segment]:
        """The segments at which a prompt ends."""
        return [segment for segment in self.segments if segment.ends]

    @property
    def num_tokens(self) -> int:
        """Tokens that are no padding."""
        return sum(len(segment.token_ids) for segment in self.segments)

    @property
    def num_prefix_tokens(self) -> int:
        """Tokens that need not be run, as they are the job's."""
        return sum(len(segment.prefix) for segment in self.segments)

    @property
    def num_pairs(self) -> int:
        """How many places all tokens attend to, themselves included."""
        return sum((s.end * (s.end + 1) - s.start * (s.start + 1)) // 2 for s in self.segments)


def lay_out(groups: Sequence[PrefillGroup], seats: Sequence[Sequence[Seat]], num_places: int, step: int) -> Batch:
    """The batch of some groups, whose rows have these seats; every segment takes a multiple of `step` places."""
    segments: list[Segment] = []
    first = 0
    for group, own in zip(groups, seats, strict=True):
        for segment in _segments(group, own, first, step):
            segments.append(segment)
            first += segment.width
    rows = tuple(row for group in groups for row in group.rows)
    return Batch(segments=tuple(segments), rows=rows, num_places=max(num_places, first))


def prefix_alone(prefix: TokenIds, seat: Seat, num_places: int, step: int) -> Batch:
    """The batch of a job's prefix: a prompt of nobody's, for the keys and values that it leaves in the seat's pages."""
    width = round_up(len(prefix), step)
    own = Segment(token_ids=prefix, prefix=prefix[:0], first=0, width=width, start=0, seats=(seat,), ends=True)
    return Batch(segments=(own,), rows=(), num_places=max(num_places, width))


def _segments(group: PrefillGroup, seats: Sequence[Seat], first: int, step: int) -> Iterator[Segment]:
    """What the group's rows share, and what each goes on with where there are several."""
    alone, prefix, shared = len(group.rows) == 1, group.prefix, group.num_shared
    own = group.shared[len(prefix) :]
    width = round_up(len(own), step)
    yield Segment(
        token_ids=own, prefix=prefix, first=first, width=width, start=len(prefix), seats=tuple(seats), ends=alone
    )
    for row, seat in () if alone else zip(group.rows, seats, strict=True):
        first += width
        rest = group.rest(row)
        width = round_up(len(rest), step)
        yield Segment(token_ids=rest, prefix=rest[:0], first=first, width=width, start=shared, seats=(seat,), ends=True)
