"""The batch of one prefill: prompts, or the parts of them that several share, side by side and padded to one length."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.engine.kernels.layout import Segment, round_up
from pipeline.engine.kernels.pages import Allocation
from pipeline.engine.prefill_group import PrefillGroup
from pipeline.engine.sequence import Sequence
from schemas.sample import TokenIds

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Segments, one behind the other from index 0 on; what is behind them is padding.

    `sequences` are those whose prompts end here, in the order of the segments that end one.
    """

    segments: tuple[Segment, ...]
    sequences: tuple[Sequence, ...]
    num_padded_tokens: int

    @property
    def token_ids(self) -> Ints:
        """Return all token ids, (padded tokens,)."""
        found = np.zeros(self.num_padded_tokens, np.int64)
        for segment in self.segments:
            found[segment.first : segment.first + len(segment.token_ids)] = segment.token_ids
        return found

    @property
    def endings(self) -> list[Segment]:
        """Return the segments at which a prompt ends."""
        return [segment for segment in self.segments if segment.ends]

    @property
    def num_tokens(self) -> int:
        """Count the tokens that are no padding."""
        return sum(len(segment.token_ids) for segment in self.segments)

    @property
    def num_prefix_tokens(self) -> int:
        """Count the tokens of the job's prefix, which need not run."""
        return sum(len(segment.prefix) for segment in self.segments)

    @property
    def num_attention_pairs(self) -> int:
        """Count the tokens that every token attends to, itself included."""
        return sum((s.end * (s.end + 1) - s.start * (s.start + 1)) // 2 for s in self.segments)


def make_batch(groups: Iterable[PrefillGroup], num_padded_tokens: int, bucket: int) -> Batch:
    """Lay groups out, whose sequences have their allocations, each segment padded to a multiple of `bucket`.

    The batch has `num_padded_tokens`, or more where one group alone is larger.
    """
    groups = tuple(groups)
    segments: list[Segment] = []
    first = 0
    for group in groups:
        for segment in _segments(group, first, bucket):
            segments.append(segment)
            first += segment.width
    sequences = tuple(sequence for group in groups for sequence in group.sequences)
    return Batch(segments=tuple(segments), sequences=sequences, num_padded_tokens=max(num_padded_tokens, first))


def prefix_batch(prefix: TokenIds, allocation: Allocation, num_padded_tokens: int, bucket: int) -> Batch:
    """Lay a job's prefix out as a prompt of no sequence, for the keys and values that it writes to these pages."""
    width = round_up(len(prefix), bucket)
    own = Segment(
        token_ids=prefix, prefix=prefix[:0], first=0, width=width, start=0, allocations=(allocation,), ends=True
    )
    return Batch(segments=(own,), sequences=(), num_padded_tokens=max(num_padded_tokens, width))


def _segments(group: PrefillGroup, first: int, bucket: int) -> Iterator[Segment]:
    """Cut a group into what its sequences share and, where there are several, the suffix of each."""
    alone, prefix, shared = len(group.sequences) == 1, group.prefix, group.shared
    width = round_up(len(shared), bucket)
    yield Segment(
        token_ids=shared,
        prefix=prefix,
        first=first,
        width=width,
        start=len(prefix),
        allocations=tuple(sequence.allocation for sequence in group.sequences),
        ends=alone,
    )
    for sequence in () if alone else group.sequences:
        first += width
        suffix = group.suffix(sequence)
        width = round_up(len(suffix), bucket)
        yield Segment(
            token_ids=suffix,
            prefix=suffix[:0],
            first=first,
            width=width,
            start=group.num_shared,
            allocations=(sequence.allocation,),
            ends=True,
        )
