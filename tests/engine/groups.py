"""Sequences and groups with chosen tokens, for tests of what runs when."""

from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import numpy as np

from pipeline.engine.completion import Completion
from pipeline.engine.kernels.pages import Allocation
from pipeline.engine.prefill_group import PrefillGroup, group_sequences
from pipeline.engine.sequence import Sequence
from schemas.engine import Sampling
from schemas.sample import Prompt, Sample, Size
from tests.engine.oracle import Spelled

IMAGE = 2
SPELLED: Any = SimpleNamespace(tokenizer=Spelled(), stop_ids=())


def sequence_of(sample: Sample, prompt: Prompt, model=SPELLED, sampling: Sampling | None = None) -> Sequence:
    """A sequence that waits for its first attempt."""
    return Sequence(sample, prompt, Completion(model, sampling or Sampling(), prompt))


def sequences_of(name: str, *prompts: list[int], num_common: int = 0) -> list[Sequence]:
    """The sequences of one sample with these prompts' token ids, so many of which are the job's."""
    asked = tuple(
        Prompt(
            id=str(i),
            text="?",
            token_ids=np.array(ids, np.int32),
            num_image_tokens=ids.count(IMAGE),
            num_common=num_common,
            max_new_tokens=1,
        )
        for i, ids in enumerate(prompts)
    )
    sample = Sample(id=name, prompts=asked)
    return [sequence_of(sample, prompt) for prompt in asked]


def group(name: str, length: int, num_sequences: int = 1, num_tiles: int = 0, num_common: int = 0) -> PrefillGroup:
    """A group with so many sequences and so many tokens shared, whose images have so many tiles; `num_common` of the
    tokens are the job's."""
    prompts = [[1] * length + ([5 + i] if num_sequences > 1 else []) for i in range(num_sequences)]
    (one,) = group_sequences(sequences_of(name, *prompts, num_common=num_common), num_sequences, IMAGE)
    assert one.num_shared == length
    if num_tiles:
        one.images.sample = Sample(
            id=name,
            prompts=one.images.sample.prompts,
            image_sizes=(Size(2, 2),),
            tiles_per_image=(num_tiles,),
            tiles=np.zeros((num_tiles, 2, 2, 3), np.uint8),
        )
    return one


def allocation(slot: int, pages: int = 1) -> Allocation:
    """A slot with so many pages: slot 0 has those from page 10 on, and so forth."""
    return Allocation(slot=slot, pages=tuple(10 + slot * pages + i for i in range(pages)))


def allocated(one: PrefillGroup, *slots: int, pages: int = 1) -> PrefillGroup:
    """The group, its sequences in these slots with so many pages each."""
    for sequence, slot in zip(one.sequences, slots, strict=True):
        sequence.allocation = allocation(slot, pages)
    return one


def names(found: Iterable[PrefillGroup]) -> list[str]:
    """The samples' ids."""
    return [one.images.sample.id for one in found]
