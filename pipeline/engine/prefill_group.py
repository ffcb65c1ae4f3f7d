"""Sequences of one sample that are prefilled together: what their prompts share runs once for all of them."""

from collections.abc import Collection
from dataclasses import dataclass

from torch import Tensor

from pipeline.engine.kernels.layout import round_up
from pipeline.engine.kernels.pages import num_pages
from pipeline.engine.sequence import Sequence, Status
from pipeline.preprocess.prompt import common_length
from schemas.sample import Prompt, Sample, TokenIds

_LEAST_PREFIX = 32  # tokens of a job's prefix that are worth copying to every sequence


@dataclass(slots=True, kw_only=True, eq=False)
class ImageInputs:
    """A sample's images, with their features once these are encoded."""

    sample: Sample
    features: Tensor | None = None  # (num_image_tokens, width)

    @property
    def num_tiles(self) -> int:
        """Count the tiles that the vision tower has yet to encode."""
        return len(self.sample.tiles) if self.features is None else 0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PrefillGroup:
    """Sequences of one sample that begin with the same tokens: these are prefilled once, as one prompt, for all.

    A single sequence is a group of its own, whose shared tokens are its whole prompt.
    """

    sequences: tuple[Sequence, ...]
    num_shared: int
    images: ImageInputs

    @property
    def is_waiting(self) -> bool:
        """Tell whether any of its sequences still waits to run."""
        return any(sequence.status is Status.WAITING for sequence in self.sequences)

    @property
    def caller(self) -> int:
        """Return who waits for it, in the order in which callers came."""
        return self.sequences[0].caller

    @property
    def num_pages(self) -> int:
        """Count the pages of the cache that its sequences need together."""
        return sum(num_pages(sequence.max_tokens) for sequence in self.sequences)

    @property
    def num_prefix(self) -> int:
        """Count the tokens of the job's prefix, which need not run; 0 where nothing shared would be left behind."""
        length = min(sequence.prompt.num_common for sequence in self.sequences)
        return length if length < self.num_shared else 0

    @property
    def prefix(self) -> TokenIds:
        """Return the tokens of the job's prefix that all its sequences begin with."""
        return self._tokens[: self.num_prefix]

    @property
    def shared(self) -> TokenIds:
        """Return the tokens that all its sequences go on with behind the prefix."""
        return self._tokens[self.num_prefix : self.num_shared]

    def suffix(self, sequence: Sequence) -> TokenIds:
        """Return the tokens that one of its sequences goes on with behind what is shared."""
        return sequence.prompt.token_ids[self.num_shared :]

    def num_padded_tokens(self, bucket: int) -> int:
        """Count its tokens in a prefill: what is shared behind the prefix and every suffix, each padded to a bucket."""
        suffixes = [len(self.suffix(sequence)) for sequence in self.sequences]
        return sum(round_up(length, bucket) for length in (self.num_shared - self.num_prefix, *suffixes))

    @property
    def _tokens(self) -> TokenIds:
        return self.sequences[0].prompt.token_ids


def group_of_one(sequence: Sequence) -> PrefillGroup:
    """Make a group of one sequence, to be prefilled whatever becomes of others of its sample."""
    images = ImageInputs(sample=sequence.sample)
    return PrefillGroup(sequences=(sequence,), num_shared=len(sequence.prompt.token_ids), images=images)


def prefix_length(prompt: Prompt, bucket: int) -> int:
    """Return how many tokens of a prompt are taken from the job's prefix.

    Whole buckets, so that what is behind is in the same blocks, and padded alike, as if it were run from its start.
    """
    length = min(prompt.num_common, len(prompt.token_ids) - 1) // bucket * bucket
    return length if length >= _LEAST_PREFIX else 0


def group_sequences(sequences: Collection[Sequence], max_sequences: int, image_token_id: int) -> list[PrefillGroup]:
    """Group the sequences of one sample, at most so many a group; they share only what is worth sharing.

    The decision follows from the sample's own prompts, never from what else is waiting: it decides the shapes.
    """
    ordered = tuple(sequences)
    images = ImageInputs(sample=ordered[0].sample)
    parts = [ordered[i : i + max_sequences] for i in range(0, len(ordered), max_sequences)]
    return [
        PrefillGroup(sequences=own, num_shared=num_shared, images=images)
        for part in parts
        for own, num_shared in _share(part, image_token_id)
    ]


def _share(sequences: tuple[Sequence, ...], image_token_id: int) -> list[tuple[tuple[Sequence, ...], int]]:
    prompts = [sequence.prompt.token_ids for sequence in sequences]
    num_shared = min(common_length(prompts), min(map(len, prompts)) - 1)  # each has a token left to sample after
    longest_suffix = max(map(len, prompts)) - num_shared
    images_left = any((ids[num_shared:] == image_token_id).any() for ids in prompts)
    if len(sequences) > 1 and num_shared > longest_suffix and not images_left:
        return [(sequences, num_shared)]
    return [((sequence,), len(sequence.prompt.token_ids)) for sequence in sequences]
