"""Which rows run when: prefill as soon as slots are free, else one token more in every slot."""

from collections import Counter, deque
from collections.abc import Iterable, Sequence

import torch

from pipeline.engine.rows import Family, Row, alone, draft_of
from pipeline.engine.runner import Launched, Runner
from pipeline.engine.sizes import Sizes
from pipeline.engine.waiting import Group, Waiting
from schemas.errors import Failure


class Scheduler:
    """Rows take a slot when they are prefilled and leave it at their last token: the slots never wait for the longest.

    Reading a step's tokens lags one step behind launching it on a GPU, which so never waits for the host; a row's last
    step is therefore one too many, and ignored.
    """

    def __init__(self, runner: Runner, sizes: Sizes, *, on_gpu: bool) -> None:
        self._runner, self._sizes = runner, sizes
        self._waiting = Waiting(bucket=sizes.bucket, prefill_tokens=sizes.prefill_tokens, num_slots=sizes.slots)
        self._free = list(range(sizes.slots))
        self._seats: dict[int, Row] = {}
        self._unread: deque[Launched] = deque()
        self._lags = on_gpu
        self._num_done = 0
        self.counts: Counter[str] = Counter()

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do until more is added."""
        return not (self._waiting or self._seats or self._unread)

    def add(self, families: Iterable[Family]) -> None:
        """Take rows in."""
        for family in families:
            self._waiting.add(family)

    def step(self, more_to_come: bool) -> bool:
        """Schedule, run, postprocess; whether a row is done. A short group waits while a full one may yet come."""
        busy = len(self._seats) * 2 >= self._sizes.slots or (more_to_come and len(self._seats) > 0)
        group = self._waiting.take(len(self._free), short=not busy)
        before = self._num_done
        launched = self._prefill(group) if group else self._decode()
        self._unread.extend(launched)
        self._postprocess(keep=len(launched) if self._lags else 0)
        return self._num_done > before

    def drop_unwanted(self) -> None:
        """Forget the rows that nobody waits for any more."""
        self._waiting.drop_unwanted()
        self._leave([slot for slot, row in self._seats.items() if not row.wanted])

    def _prefill(self, group: Group) -> list[Launched]:
        seats = [[self._free.pop() for _ in family.rows] for family in group.families]
        try:
            self._runner.see(group, self._waiting.behind(group))
            launched = self._runner.prefill(group, seats)
        except torch.OutOfMemoryError as error:
            launched, shortage = [], str(error)
        if not launched:  # out of the handler: the error's traceback no longer holds the tensors of the attempt
            self._give_way(group, seats, shortage)
            return []
        for family, own in zip(group.families, seats, strict=True):
            self._seats.update(zip(own, family.rows, strict=True))
        return launched

    def _give_way(self, group: Group, seats: Sequence[Sequence[int]], shortage: str) -> None:
        """Run out of memory: try half as many rows; a row too large alone fails."""
        torch.cuda.empty_cache()
        self.counts["out of memory"] += 1
        slots = [slot for own in seats for slot in own]
        self._runner.rest(slots)
        self._free.extend(slots)
        if group.num_rows > 1:
            self._waiting.retry_smaller(group)
            return
        for row in (row for family in group.families for row in family.rows):
            row.failure = _too_large(row, shortage)
            self._finish(row)

    def _decode(self) -> list[Launched]:
        if not self._seats:
            return []
        lengths = [len(row.prompt.token_ids) + draft_of(row).num_tokens for row in self._seats.values()]
        self.counts["busy slots"] += len(lengths)
        self.counts["pairs"] += sum(lengths)
        try:
            reading = self._runner.decode(max(lengths))
        except torch.OutOfMemoryError:
            reading = None
        if reading is None:  # its shape is always the same: only what the allocator keeps back can make room
            torch.cuda.empty_cache()
            self.counts["out of memory"] += 1
            reading = self._runner.decode(max(lengths))
        return [Launched(reading=reading, drafts=tuple((slot, draft_of(row)) for slot, row in self._seats.items()))]

    def _postprocess(self, keep: int) -> None:
        while len(self._unread) > keep:
            launched = self._unread.popleft()
            token_ids, logprobs = launched.reading.wait()
            for place, draft in launched.drafts:
                draft.add(int(token_ids[place]), logprobs[place])
        done = {slot: row for slot, row in self._seats.items() if draft_of(row).finish_reason}
        self._leave(list(done))
        for row in done.values():
            if (second := draft_of(row).second_try()) is not None:
                row.draft = second
                self._waiting.add(alone(row))
                self.counts["second tries"] += 1
            else:
                self._finish(row)

    def _finish(self, row: Row) -> None:
        row.done = True
        self._num_done += 1
        self.counts["rows"] += 1
        self.counts["prompt tokens"] += len(row.prompt.token_ids)
        self.counts["answer tokens"] += draft_of(row).num_tokens

    def _leave(self, slots: Sequence[int]) -> None:
        if not slots:
            return
        self._runner.rest(slots)
        for slot in slots:
            if not draft_of(self._seats.pop(slot)).finite:
                self._runner.clear(slot)
            self._free.append(slot)


def _too_large(row: Row, shortage: str) -> Failure:
    prompt = row.prompt
    needs = f"{len(prompt.token_ids)} prompt tokens and up to {prompt.max_new_tokens} new ones"
    return Failure(stage="generate", type="OutOfMemory", message=f"{needs} do not fit the device alone: {shortage}")
