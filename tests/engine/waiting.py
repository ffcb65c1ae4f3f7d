"""Rows and groups with chosen tokens, for tests of what runs when."""

from collections.abc import Sequence

import numpy as np

from pipeline.engine.draft import Draft
from pipeline.engine.kernels.pages import Seat
from pipeline.engine.network.load import LoadedModel
from pipeline.engine.sequence import PrefillGroup, Row, groups
from schemas.engine import Sampling
from schemas.sample import Prompt, Sample, Size

IMAGE = 2


def rows_of(name: str, *prompts: list[int], num_common: int = 0) -> list[Row]:
    """The rows of one sample with these prompts' token ids, so many of which are the job's."""
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
    return [Row(sample=sample, prompt=prompt) for prompt in asked]


def group(name: str, length: int, num_rows: int = 1, num_tiles: int = 0, num_common: int = 0) -> PrefillGroup:
    """A group with so many rows and so many tokens shared, whose images have so many tiles; `num_common` of the tokens
    are the job's."""
    prompts = [[1] * length + ([5 + i] if num_rows > 1 else []) for i in range(num_rows)]
    (one,) = groups(rows_of(name, *prompts, num_common=num_common), num_rows, IMAGE)
    assert one.num_shared == length
    if num_tiles:
        one.pictures.sample = Sample(
            id=name,
            prompts=one.pictures.sample.prompts,
            image_sizes=(Size(2, 2),),
            tiles_per_image=(num_tiles,),
            tiles=np.zeros((num_tiles, 2, 2, 3), np.uint8),
        )
    return one


def seats(*slots: int, pages: int = 1) -> list[Seat]:
    """Rows in these slots, with so many pages each: slot 0 from page 10 on, and so forth."""
    return [Seat(slot=n, pages=tuple(10 + n * pages + i for i in range(pages))) for n in slots]


def names(found: Sequence[PrefillGroup]) -> list[str]:
    """The samples' ids."""
    return [one.pictures.sample.id for one in found]


def drafted(model: LoadedModel, row: Row, first: Draft | None = None) -> Row:
    """The row with an answer begun."""
    row.draft = Draft(model, Sampling(), row.prompt, first=first)
    return row
