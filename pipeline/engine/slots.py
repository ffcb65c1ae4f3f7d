"""The slots of the decode batch: what each carries from step to step, on the device."""

import torch
from torch import Tensor

from pipeline.engine.kernels.layout import round_up
from pipeline.engine.kernels.pages import EMPTY, IDLE
from pipeline.engine.sampling import Sampled, SamplingState
from schemas.engine import BLOCK


class Slots:
    """Numbers of every slot, (rows,) each: one row a slot, then padding up to a whole block of a product.

    In a block that is not whole a CPU's bfloat16 products round a row by its index.
    """

    def __init__(self, num: int, num_pages: int, num_seen: int, device: torch.device) -> None:
        self.num, self.num_rows = num, round_up(num, BLOCK)
        size = self.num_rows + 1
        self.token_ids, self.positions, self.running, self.seeds, self.steps = (
            torch.zeros(size, dtype=torch.int64, device=device) for _ in range(5)
        )
        self.tables = torch.full((size, num_pages), EMPTY, dtype=torch.int64, device=device)
        self.tables[:, 0] = IDLE
        self.logprobs = torch.zeros(size, device=device)
        self.seen = torch.zeros(size, num_seen, dtype=torch.bool, device=device) if num_seen else None
        self.penalties = torch.ones(size, device=device) if num_seen else None

    @property
    def dummy(self) -> int:
        """Return a row that no step reads: where a prefill writes the numbers of its padding."""
        return self.num_rows

    def state(self) -> SamplingState:
        """Return what the sampler must know of the slots, as views."""
        seen = None if self.seen is None else self.seen[: self.num_rows]
        penalties = None if self.penalties is None else self.penalties[: self.num_rows]
        return SamplingState(
            seeds=self.seeds[: self.num_rows], steps=self.steps[: self.num_rows], seen=seen, penalties=penalties
        )

    def start(
        self, slots: Tensor, positions: Tensor, tables: Tensor, *, state: SamplingState, sampled: Sampled
    ) -> None:
        """Start sequences in these slots: behind prompts of `positions` tokens, with their pages and first tokens."""
        self.tables.index_copy_(0, slots, tables)
        self.token_ids.index_copy_(0, slots, sampled.token_ids)
        self.positions.index_copy_(0, slots, positions)
        self.seeds.index_copy_(0, slots, state.seeds)
        self.steps.index_fill_(0, slots, 1)
        self.running.index_fill_(0, slots, 1)
        if self.seen is not None and state.seen is not None:
            self.seen.index_copy_(0, slots, state.seen)
        if self.penalties is not None and state.penalties is not None:
            self.penalties.index_copy_(0, slots, state.penalties)

    def advance(self, sampled: Sampled) -> None:
        """Take a decode step's tokens; an idle slot stays at position 0."""
        running = self.running[: self.num_rows]
        self.token_ids[: self.num_rows].copy_(sampled.token_ids)
        self.logprobs[: self.num_rows].copy_(sampled.logprobs)
        self.positions[: self.num_rows].add_(running)
        self.steps[: self.num_rows].add_(running)

    def release(self, slots: Tensor) -> None:
        """Make slots idle, at position 0 of a page that no sequence has: later steps leave all other pages alone."""
        self.tables.index_fill_(0, slots, EMPTY)
        self.tables[:, 0].index_fill_(0, slots, IDLE)
        self.running.index_fill_(0, slots, 0)
        self.positions.index_fill_(0, slots, 0)
