"""Rows, and which of them are prefilled as one: prompts of a sample behind the beginning that they share."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from pipeline.engine.draft import Draft
from pipeline.engine.kernels.layout import round_up
from pipeline.engine.kernels.pages import num_pages
from pipeline.preprocess.prompt import common_length
from schemas.errors import Failure
from schemas.sample import Prompt, Sample, TokenIds

_LEAST_PREFIX = 32  # tokens of a job's prefix that are worth copying them to every row


@dataclass(slots=True, kw_only=True, eq=False)
class Row:
    """One prompt of one sample on its way to an answer. The engine's thread writes to it, its caller waits for it."""

    sample: Sample
    prompt: Prompt
    draft: Draft | None = None  # None where the prompt has failed before it came here
    failure: Failure | None = None
    done: bool = False
    wanted: bool = True  # until its caller goes away

    @property
    def most_tokens(self) -> int:
        """Tokens of prompt and answer, at most."""
        return len(self.prompt.token_ids) + self.prompt.max_new_tokens


@dataclass(slots=True, kw_only=True, eq=False)
class Pictures:
    """A sample's images, and their features from when they are computed until its last group is prefilled."""

    sample: Sample
    features: Tensor | None = None  # (num_image_tokens, width)

    @property
    def num_tiles(self) -> int:
        """Tiles that the vision tower has yet to see."""
        return len(self.sample.tiles) if self.features is None else 0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PrefillGroup:
    """Rows of one sample that begin with the same tokens: these are prefilled once, as one row, for all of them.

    A single row is a group of its own, whose shared tokens are its whole prompt.
    """

    rows: tuple[Row, ...]
    num_shared: int
    pictures: Pictures

    @property
    def wanted(self) -> bool:
        """Whether anyone still waits for one of its rows."""
        return any(row.wanted for row in self.rows)

    @property
    def num_pages(self) -> int:
        """Pages of the cache that its rows need together."""
        return sum(num_pages(row.most_tokens) for row in self.rows)

    @property
    def prefix(self) -> TokenIds:
        """The tokens of the job's that they all begin with, and that need not be run for them."""
        return self.rows[0].prompt.token_ids[: self.num_prefix]

    @property
    def num_prefix(self) -> int:
        """How many these are: none where nothing that is shared would be left behind them."""
        length = min(row.prompt.num_common for row in self.rows)
        return length if length < self.num_shared else 0

    @property
    def shared(self) -> TokenIds:
        """The tokens that all its rows begin with."""
        return self.rows[0].prompt.token_ids[: self.num_shared]

    def rest(self, row: Row) -> TokenIds:
        """The tokens that one of its rows goes on with."""
        return row.prompt.token_ids[self.num_shared :]

    def num_places(self, step: int) -> int:
        """Places that it takes in a prefill: what is shared behind the prefix and every rest, each a multiple of
        `step`."""
        rests = [len(row.prompt.token_ids) - self.num_shared for row in self.rows]
        return sum(round_up(length, step) for length in (self.num_shared - self.num_prefix, *rests))


def draft_of(row: Row) -> Draft:
    """The answer being drawn of a row that has not failed."""
    assert row.draft is not None
    return row.draft


def alone(row: Row) -> PrefillGroup:
    """A row as a group of its own, to be prefilled whatever has become of its relatives."""
    return PrefillGroup(rows=(row,), num_shared=len(row.prompt.token_ids), pictures=Pictures(sample=row.sample))


def prefix_length(prompt: Prompt, step: int) -> int:
    """How much of a prompt is taken from the job's prefix: whole steps, so that what is behind it stands in its
    blocks, and is padded, as if it were run from its start."""
    length = min(prompt.num_common, len(prompt.token_ids) - 1) // step * step
    return length if length >= _LEAST_PREFIX else 0


def groups(rows: Sequence[Row], most: int, image_token_id: int) -> list[PrefillGroup]:
    """Group the rows of one sample, at most so many a group; they share only what is worth sharing.

    The decision follows from the sample's own prompts, never from what else is waiting: it decides the shapes.
    """
    pictures = Pictures(sample=rows[0].sample)
    parts = [rows[i : i + most] for i in range(0, len(rows), most)]
    return [
        PrefillGroup(rows=tuple(own), num_shared=num_shared, pictures=pictures)
        for part in parts
        for own, num_shared in _share(part, image_token_id)
    ]


def _share(rows: Sequence[Row], image_token_id: int) -> list[tuple[Sequence[Row], int]]:
    prompts = [row.prompt.token_ids for row in rows]
    num_shared = min(common_length(prompts), min(map(len, prompts)) - 1)  # every row has a token left to go on from
    longest_rest = max(map(len, prompts)) - num_shared
    images_left = any((ids[num_shared:] == image_token_id).any() for ids in prompts)
    if len(rows) > 1 and num_shared > longest_rest and not images_left:
        return [(rows, num_shared)]
    return [((row,), len(row.prompt.token_ids)) for row in rows]
