"""Which prompts run together, and how prompts of unequal length become one rectangle."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from schemas.sample import Prompt, Sample, TokenIds


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One prompt of one sample: what becomes one answer."""

    sample: Sample
    prompt: Prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Left-padded prompts: `token_ids` (rows, length) int64; `mask` is 1 on a prompt's own tokens, 0 on padding."""

    token_ids: Tensor
    mask: Tensor


def windows(samples: Iterable[Sample], look_ahead: int) -> Iterator[list[Sample]]:
    """Cut a stream into runs of samples, each with at least `look_ahead` prompts but for the last."""
    window: list[Sample] = []
    num_prompts = 0
    for sample in samples:
        window.append(sample)
        num_prompts += len(sample.prompts)
        if num_prompts >= look_ahead:
            yield window
            window, num_prompts = [], 0
    if window:
        yield window


def group(rows: Sequence[Row], batch_size: int) -> list[list[int]]:
    """Positions of the answerable rows in batches of like length, the longest first.

    The prompts of one sample stay side by side, so that its image features are needed in one batch or two in a row.
    """
    longest: dict[int, int] = {}
    for row in rows:
        key = id(row.sample)
        longest[key] = max(longest.get(key, 0), len(row.prompt.token_ids))
    answerable = [i for i, row in enumerate(rows) if row.prompt.failure is None]
    answerable.sort(key=lambda i: -longest[id(rows[i].sample)])  # stable: rows of one sample keep together
    return [answerable[i : i + batch_size] for i in range(0, len(answerable), batch_size)]


def left_pad(prompts: Sequence[TokenIds]) -> Batch:
    """Left-pad prompts of unequal length into one batch."""
    length = max(len(ids) for ids in prompts)
    token_ids = torch.zeros(len(prompts), length, dtype=torch.int64)
    mask = torch.zeros_like(token_ids)
    for row, ids in enumerate(prompts):
        token_ids[row, length - len(ids) :] = torch.tensor(ids, dtype=torch.int64)
        mask[row, length - len(ids) :] = 1
    return Batch(token_ids=token_ids, mask=mask)
