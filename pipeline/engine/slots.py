"""What each slot carries from step to step: a few numbers and the pages of its row, on the device."""

import torch
from torch import Tensor

from pipeline.engine.kernels.layout import round_up
from pipeline.engine.kernels.pages import EMPTY, IDLE
from pipeline.engine.sampling import Draw, DrawState
from schemas.engine import BLOCK


class Slots:
    """Numbers of every slot, (rows,) each: a row a slot, then rows of no slot up to a whole block of a product.

    In a block that is not whole a CPU's bfloat16 products round a row by where it stands.
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
        """A row that no step runs, for what is nobody's."""
        return self.num_rows

    def state(self) -> DrawState:
        """What drawing must know of the slots, as views."""
        seen = None if self.seen is None else self.seen[: self.num_rows]
        penalties = None if self.penalties is None else self.penalties[: self.num_rows]
        return DrawState(
            seeds=self.seeds[: self.num_rows], steps=self.steps[: self.num_rows], seen=seen, penalties=penalties
        )

    def begin(self, slots: Tensor, positions: Tensor, tables: Tensor, *, state: DrawState, draw: Draw) -> None:
        """Set slots to work behind their prompts, `positions` long, in the pages of their rows, and the first tokens
        drawn."""
        self.tables.index_copy_(0, slots, tables)
        self.token_ids.index_copy_(0, slots, draw.token_ids)
        self.positions.index_copy_(0, slots, positions)
        self.seeds.index_copy_(0, slots, state.seeds)
        self.steps.index_fill_(0, slots, 1)
        self.running.index_fill_(0, slots, 1)
        if self.seen is not None and state.seen is not None:
            self.seen.index_copy_(0, slots, state.seen)
        if self.penalties is not None and state.penalties is not None:
            self.penalties.index_copy_(0, slots, state.penalties)

    def advance(self, draw: Draw) -> None:
        """Take a decode step's tokens; a slot at rest stays at its first place."""
        running = self.running[: self.num_rows]
        self.token_ids[: self.num_rows].copy_(draw.token_ids)
        self.logprobs[: self.num_rows].copy_(draw.logprobs)
        self.positions[: self.num_rows].add_(running)
        self.steps[: self.num_rows].add_(running)

    def rest(self, slots: Tensor) -> None:
        """Let slots rest at the first place of a page that is nobody's: no later step reads or writes their rows'."""
        self.tables.index_fill_(0, slots, EMPTY)
        self.tables[:, 0].index_fill_(0, slots, IDLE)
        self.running.index_fill_(0, slots, 0)
        self.positions.index_fill_(0, slots, 0)
