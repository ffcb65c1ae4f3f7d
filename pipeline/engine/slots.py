"""The slots of a decode batch: what each carries from step to step, on the devices."""

from collections.abc import Mapping

import torch
from torch import Tensor

from pipeline.engine.completion import Completion
from pipeline.engine.kernels.pages import EMPTY, IDLE
from pipeline.engine.network.forms import ALL, FormMatcher, Forms
from pipeline.engine.sampling import Sampled, Sampler, SamplingState


class SlotPositions:
    """Positions of the sequences in all slots, and their pages, for the layers on one device: a row a slot.

    One row more, the last, is read by no step.
    """

    def __init__(self, num_rows: int, num_pages: int, device: torch.device) -> None:
        self._num_rows = num_rows
        self.positions, self._running = (torch.zeros(num_rows + 1, dtype=torch.int64, device=device) for _ in range(2))
        self.tables = torch.full((num_rows + 1, num_pages), EMPTY, dtype=torch.int64, device=device)
        self.tables[:, 0] = IDLE

    @property
    def device(self) -> torch.device:
        """Return the device of the layers."""
        return self.positions.device

    def start(self, rows: Tensor, positions: Tensor, tables: Tensor) -> None:
        """Start sequences in these rows: behind prompts of `positions` tokens, with their pages."""
        self.tables.index_copy_(0, rows, tables)
        self.positions.index_copy_(0, rows, positions)
        self._running.index_fill_(0, rows, 1)

    def advance(self) -> None:
        """Go on by one token; an idle slot stays at position 0."""
        self.positions[: self._num_rows].add_(self._running[: self._num_rows])

    def release(self, rows: Tensor) -> None:
        """Make slots idle, at position 0 of a page that no sequence has: later steps leave all other pages alone."""
        self.tables.index_fill_(0, rows, EMPTY)
        self.tables[:, 0].index_fill_(0, rows, IDLE)
        self._running.index_fill_(0, rows, 0)
        self.positions.index_fill_(0, rows, 0)


class SlotTokens:
    """The newest token of every slot and what the next is sampled by, on the device that samples: a row a slot.

    One row more, the last, is read by no step.
    """

    def __init__(self, num_rows: int, sampler: Sampler, device: torch.device) -> None:
        self._num_rows, num_seen, num_words = num_rows, sampler.num_seen, sampler.num_words
        self.token_ids, self._seeds, self._steps = (
            torch.zeros(num_rows + 1, dtype=torch.int64, device=device) for _ in range(3)
        )
        self.logprobs = torch.zeros(num_rows + 1, device=device)
        self._top_ids = torch.zeros(num_rows + 1, sampler.num_top, dtype=torch.int64, device=device)
        self._top_logprobs = torch.zeros(num_rows + 1, sampler.num_top, device=device)
        self._seen = torch.zeros(num_rows + 1, num_seen, dtype=torch.bool, device=device) if num_seen else None
        self._penalties = torch.ones(num_rows + 1, device=device) if num_seen else None
        self._masks = torch.full((num_rows, num_words), ALL, dtype=torch.int32, device=device) if num_words else None

    def state(self) -> SamplingState:
        """Return what the sampler must know of the slots, as views."""
        own = slice(self._num_rows)
        seen = None if self._seen is None else self._seen[own]
        penalties = None if self._penalties is None else self._penalties[own]
        return SamplingState(
            seeds=self._seeds[own], steps=self._steps[own], seen=seen, penalties=penalties, masks=self._masks
        )

    def newest(self, num: int) -> Sampled:
        """Return what the first `num` rows have sampled last, as views."""
        both = {"token_ids": self.token_ids[:num], "logprobs": self.logprobs[:num]}
        if not self._top_ids.shape[1]:
            return Sampled(**both)
        return Sampled(**both, top_ids=self._top_ids[:num], top_logprobs=self._top_logprobs[:num])

    def start(self, rows: Tensor, state: SamplingState, sampled: Sampled) -> None:
        """Start sequences in these rows, with their first tokens."""
        self.token_ids.index_copy_(0, rows, sampled.token_ids)
        self._seeds.index_copy_(0, rows, state.seeds)
        self._steps.index_fill_(0, rows, 1)
        if self._seen is not None and state.seen is not None:
            self._seen.index_copy_(0, rows, state.seen)
        if self._penalties is not None and state.penalties is not None:
            self._penalties.index_copy_(0, rows, state.penalties)

    def set_masks(self, masks: Tensor) -> None:
        """Take the masks of the next step's tokens, from the host's memory."""
        assert self._masks is not None
        self._masks.copy_(masks, non_blocking=True)

    def advance(self, sampled: Sampled) -> None:
        """Take a step's tokens."""
        self.token_ids[: self._num_rows].copy_(sampled.token_ids)
        self.logprobs[: self._num_rows].copy_(sampled.logprobs)
        if sampled.top_ids is not None and sampled.top_logprobs is not None:
            self._top_ids[: self._num_rows].copy_(sampled.top_ids)
            self._top_logprobs[: self._num_rows].copy_(sampled.top_logprobs)
        self._steps[: self._num_rows].add_(1)


class SlotMasks:
    """The masks of a decode batch's slots, on the host; on a GPU they are copied from here while it works."""

    def __init__(self, num_rows: int, num_words: int, *, pinned: bool) -> None:
        self._masks = torch.full((num_rows, num_words), ALL, dtype=torch.int32, pin_memory=pinned)
        self._set: set[int] = set()  # rows whose masks allow less than everything

    @property
    def is_set(self) -> bool:
        """Tell whether any row's mask allows less than everything."""
        return bool(self._set)

    def fill(self, forms: Forms, matchers: Mapping[int, FormMatcher]) -> tuple[Tensor, list[int]]:
        """Write the masks of these rows, and let all others have every token; return all masks, and `Forms.fill`'s."""
        self._masks[sorted(self._set - matchers.keys())] = ALL
        self._set = set(matchers)
        return self._masks, forms.fill(matchers, self._masks)


def fill_masks(masks: SlotMasks, forms: Forms, completions: Mapping[int, Completion]) -> Tensor:
    """Write the masks of completions that go on, by row; one whose form cannot be followed further ends."""
    going_on = {row: one for row, one in completions.items() if one.finish_reason is None}
    filled, lost = masks.fill(forms, {row: one.form for row, one in going_on.items() if one.form})
    for row in lost:
        going_on[row].lose_form()
    return filled
