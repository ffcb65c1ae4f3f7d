"""The rectangles of tokens that a prefill runs, as numbers on the host: rows, their padding, their slots."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.engine.rows import Row
from pipeline.engine.waiting import Group, round_up
from schemas.sample import TokenIds

Ints = npt.NDArray[np.int64]

_REST_STEP = 16  # what is left of a prompt behind a shared beginning runs at a multiple of this


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """Tokens that run together, (rows, length), each row with padding behind it.

    `ending` are the rows whose prompt ends in this chunk, so that a token is drawn for them, and where they stand.
    """

    token_ids: Ints
    starts: Ints  # (rows,) the first token's position in its prompt
    lengths: Ints  # (rows,) tokens that are no padding; a dummy row has one
    slots: Ints  # (rows,) where keys and values go
    dummy: int  # the slot that nobody reads
    ending: tuple[tuple[int, Row], ...]

    @property
    def drawn_slots(self) -> Ints:
        """The slots that go to work behind this chunk; the dummy's for the other rows."""
        slots = np.full_like(self.slots, self.dummy)
        places = [place for place, _ in self.ending]
        slots[places] = self.slots[places]
        return slots


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    token_ids: TokenIds
    start: int
    slot: int
    row: Row | None  # whose prompt ends here


def beginnings(group: Group, seats: Sequence[Sequence[int]], dummy: int) -> Chunk:
    """The group's rectangle: what each family shares, in the first of its slots."""
    parts = [
        _Part(token_ids=f.shared, start=0, slot=own[0], row=f.rows[0] if len(f.rows) == 1 else None)
        for f, own in zip(group.families, seats, strict=True)
    ]
    return _chunk(parts, (group.num_rows, group.length), dummy)


def rests(group: Group, seats: Sequence[Sequence[int]], dummy: int, num_rows: int) -> Iterator[Chunk]:
    """What the rows of larger families go on with, those of like length together."""
    parts = [
        _Part(token_ids=f.rest(row), start=f.num_shared, slot=slot, row=row)
        for f, own in zip(group.families, seats, strict=True)
        if len(f.rows) > 1
        for row, slot in zip(f.rows, own, strict=True)
    ]
    lengths = [round_up(len(part.token_ids), _REST_STEP) for part in parts]
    for length in sorted(set(lengths)):
        alike = [part for part, own in zip(parts, lengths, strict=True) if own == length]
        for i in range(0, len(alike), num_rows):
            yield _chunk(alike[i : i + num_rows], (num_rows, length), dummy)


def _chunk(parts: Sequence[_Part], shape: tuple[int, int], dummy: int) -> Chunk:
    token_ids = np.zeros(shape, np.int64)
    starts, lengths = np.zeros(shape[0], np.int64), np.ones(shape[0], np.int64)
    slots = np.full(shape[0], dummy, np.int64)
    for i, part in enumerate(parts):
        token_ids[i, : len(part.token_ids)] = part.token_ids
        starts[i], lengths[i], slots[i] = part.start, len(part.token_ids), part.slot
    ending = tuple((i, part.row) for i, part in enumerate(parts) if part.row is not None)
    return Chunk(token_ids=token_ids, starts=starts, lengths=lengths, slots=slots, dummy=dummy, ending=ending)
