"""Which rows run when: prefill as soon as slots and pages are free, else one token more in every slot."""

from collections import Counter, deque
from collections.abc import Iterable, Sequence

import torch

from pipeline.engine.batch import lay_out
from pipeline.engine.kernels.pages import Seat, Seats
from pipeline.engine.queue import Waiting
from pipeline.engine.runner import Launched, Runner
from pipeline.engine.sequence import PrefillGroup, Row, alone, draft_of
from pipeline.engine.sizes import Sizes
from schemas.errors import Failure

_PART = 2  # a prefill's rows take at most this part of all pages: it need not wait until nearly all others have ended
_AT_HAND = 4  # prefills' worth of groups whose features are kept: enough of them to fill one to its end


class Scheduler:
    """Rows take a slot, and all pages that they may need, when they are prefilled, and leave them at their last token:
    the slots never wait for the longest, and no row at work ever lacks a page.

    Reading a step's tokens lags one step behind launching it on a GPU, which so never waits for the host; a row's last
    step is therefore one too many, and ignored.
    """

    def __init__(self, runner: Runner, sizes: Sizes, *, on_gpu: bool) -> None:
        self._runner, self._sizes = runner, sizes
        self._waiting = Waiting(
            num_places=sizes.prefill_tokens,
            step=sizes.bucket,
            tiles_per_call=sizes.tiles_per_call,
            most_rows=sizes.drawn,
            most_pages=sizes.pages // _PART,
        )
        self._free = Seats(num_slots=sizes.slots, num_pages=sizes.pages)
        self._seats: dict[Seat, Row] = {}
        self._unread: deque[Launched] = deque()
        self._lags = on_gpu
        self._num_done = 0
        self.counts: Counter[str] = Counter()

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do until more is added."""
        return not (self._waiting or self._seats or self._unread)

    @property
    def seats(self) -> tuple[Seat, ...]:
        """What the rows at work have."""
        return tuple(self._seats)

    @property
    def num_free_pages(self) -> int:
        """Pages that no row has."""
        return self._free.num_pages

    def add(self, groups: Iterable[PrefillGroup]) -> None:
        """Take rows in."""
        self._waiting.add(groups)

    def step(self, *, more_to_come: bool) -> bool:
        """Schedule, run, postprocess; whether a row is done. A short prefill waits while a full one may yet come."""
        short = not self._seats or (not more_to_come and self._is_short_worth_it)
        before = self._num_done
        self._see(1, short)
        chosen = self._waiting.take(self._free.num_slots, self._free.num_pages, short=short)
        launched = self._prefill(chosen) if chosen else self._decode()
        if chosen:  # what the host does for it costs nothing while a GPU is at work on a prefill
            self._see(_AT_HAND, short)
        self._unread.extend(launched)
        self._postprocess(keep=len(launched) if self._lags else 0)
        return self._num_done > before

    @property
    def _is_short_worth_it(self) -> bool:
        """Whether to prefill what waits though it does not fill a prefill: second tries come one by one, those wait."""
        return len(self._seats) * 2 < self._sizes.slots or self._waiting.has_first_tries

    def drop_unwanted(self) -> None:
        """Forget the rows that nobody waits for any more."""
        self._waiting.drop_unwanted()
        self._leave([seat for seat, row in self._seats.items() if not row.wanted])

    def _see(self, prefills: int, short: bool) -> None:
        """Compute features until those of so many prefills are at hand."""
        while groups := self._waiting.next_to_see(prefills, short=short):
            shortage = None
            try:
                self._runner.see(groups)
            except torch.OutOfMemoryError as error:
                shortage = str(error)
            if shortage is not None:  # out of the handler, as below
                self._see_fewer(groups, shortage)
            self._waiting.sort()

    def _see_fewer(self, groups: Sequence[PrefillGroup], shortage: str) -> None:
        """Run out of memory: one group's images at a time from now on; those too large alone fail."""
        torch.cuda.empty_cache()
        self.counts["out of memory"] += 1
        if len(groups) > 1:
            self._waiting.tiles_per_call = 1
            return
        self._fail(groups, shortage)
        self._waiting.drop_unwanted()

    def _prefill(self, groups: Sequence[PrefillGroup]) -> list[Launched]:
        seats = [[self._free.take(row.most_tokens) for row in group.rows] for group in groups]
        batch = lay_out(groups, seats, self._waiting.num_places, self._sizes.bucket)
        try:
            launched = [self._runner.prefill(batch, [group.pictures for group in groups])]
        except torch.OutOfMemoryError as error:
            launched, shortage = [], str(error)
        if not launched:  # out of the handler: the error's traceback no longer holds the tensors of the attempt
            self._give_way(groups, seats, shortage)
            return []
        for group, own in zip(groups, seats, strict=True):
            self._seats.update(zip(own, group.rows, strict=True))
        return launched

    def _give_way(self, groups: Sequence[PrefillGroup], seats: Sequence[Sequence[Seat]], shortage: str) -> None:
        """Run out of memory: try half as many places; a group too large alone fails."""
        torch.cuda.empty_cache()
        self.counts["out of memory"] += 1
        taken = [seat for own in seats for seat in own]
        self._runner.rest(taken)
        self._free.take_back(taken)
        if self._waiting.shrink(groups):
            return
        self._fail(groups, shortage)

    def _fail(self, groups: Iterable[PrefillGroup], shortage: str) -> None:
        for row in (row for group in groups for row in group.rows):
            row.wanted = False
            if not draft_of(row).abandon():  # a second try: the first one's answer stands
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
        return [
            Launched(reading=reading, drafts=tuple((seat.slot, draft_of(row)) for seat, row in self._seats.items()))
        ]

    def _postprocess(self, keep: int) -> None:
        while len(self._unread) > keep:
            launched = self._unread.popleft()
            token_ids, logprobs = launched.reading.wait()
            for place, draft in launched.drafts:
                draft.add(int(token_ids[place]), logprobs[place])
        done = {seat: row for seat, row in self._seats.items() if draft_of(row).finish_reason}
        self._leave(list(done))
        for row in done.values():
            if (second := draft_of(row).second_try()) is not None:
                row.draft = second
                self._waiting.add([alone(row)])
                self.counts["second tries"] += 1
            else:
                self._finish(row)

    def _finish(self, row: Row) -> None:
        row.done = True
        self._num_done += 1
        self.counts["rows"] += 1
        self.counts["prompt tokens"] += len(row.prompt.token_ids)
        self.counts["answer tokens"] += draft_of(row).num_tokens

    def _leave(self, seats: Sequence[Seat]) -> None:
        if not seats:
            return
        self._runner.rest(seats)
        for seat in seats:
            if not draft_of(self._seats.pop(seat)).finite:
                self._runner.clear(seat)
        self._free.take_back(seats)


def _too_large(row: Row, shortage: str) -> Failure:
    prompt = row.prompt
    needs = f"{len(prompt.token_ids)} prompt tokens and up to {prompt.max_new_tokens} new ones"
    return Failure(stage="generate", type="OutOfMemory", message=f"{needs} do not fit the device alone: {shortage}")
