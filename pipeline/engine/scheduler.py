"""Schedule sequences: a prefill as soon as slots and pages are free, else one more token in every slot."""

from collections import deque
from collections.abc import Collection, Iterable
from functools import partial

from pipeline.engine.batch import make_batch
from pipeline.engine.kernels.pages import Allocator
from pipeline.engine.model_runner import InFlight, ModelRunner
from pipeline.engine.out_of_memory import OutOfMemory, try_in_memory
from pipeline.engine.prefill_group import PrefillGroup, group_of_one
from pipeline.engine.sequence import Sequence, Status, describe_length
from pipeline.engine.shapes import Shapes
from pipeline.engine.waiting import WaitingQueue
from schemas.errors import Failure

_PART = 2  # a prefill takes at most this part of all pages: it need not wait until nearly all sequences have ended
_AT_HAND = 4  # prefills' worth of groups whose features are kept: enough of them to fill one to its end


class Scheduler:
    """Runs sequences from waiting to done.

    A sequence takes a slot, and all pages that it may ever need, at its prefill, and releases them at its last token:
    slots never wait for the longest answer, and no running sequence ever lacks a page.

    On a GPU a step's tokens are read one step after it was launched, so that the device never waits for the host; the
    last step of a sequence is therefore one too many, and its token is ignored.

    Over several devices, where layers are in parts, all of them are at work while prefills follow each other, each on
    the device that the one before has left, and so are the steps of as many decode batches.
    """

    def __init__(self, runner: ModelRunner, shapes: Shapes, *, on_gpu: bool) -> None:
        self._runner, self._shapes = runner, shapes
        self._waiting = WaitingQueue(
            num_padded_tokens=shapes.prefill_tokens,
            bucket=shapes.bucket,
            tiles_per_call=shapes.tiles_per_call,
            max_sequences=shapes.max_prompts_per_prefill,
            max_pages=shapes.pages // _PART,
        )
        self._running: dict[int, Sequence] = {}  # by slot
        self._allocator = Allocator(num_slots=shapes.slots, num_pages=shapes.pages, num_batches=shapes.num_batches)
        self._in_flight: deque[InFlight] = deque()
        self._turn = 0  # of the decode batches: whose step comes next
        self._last_prefill = 0, 0  # slots and pages that it took
        self._in_row = False  # whether the last launch was a prefill
        self._lags = on_gpu
        self._counters = runner.counters

    def step(self, *, more_to_come: bool) -> bool:
        """Schedule, run, postprocess; tell whether a sequence is done.

        While more is to come a prefill that is not full waits for it, unless nothing is running.
        """
        num_done = self._counters.num_rows
        short = not self._running or (not more_to_come and self._is_short_worth_it)
        self._encode_images(1, short)
        groups = self._next_prefill(short)
        launched = self._prefill(groups) if groups else self._decode()
        if groups:  # while a GPU is busy with a prefill, the host's part of encoding costs nothing
            self._encode_images(_AT_HAND, short)
        self._postprocess(self._num_due(launched) if launched and self._lags else len(self._in_flight))
        return self._counters.num_rows > num_done

    @property
    def is_idle(self) -> bool:
        """Tell whether there is nothing to do until more is added."""
        return not (self._waiting or self._running or self._in_flight)

    @property
    def running(self) -> tuple[Sequence, ...]:
        """Return the sequences that hold slots and pages."""
        return tuple(self._running.values())

    @property
    def num_free_pages(self) -> int:
        """Count the pages that no sequence holds."""
        return self._allocator.num_free_pages

    def add(self, groups: Iterable[PrefillGroup]) -> None:
        """Queue groups."""
        self._waiting.add(groups)

    def abort(self, sequences: Iterable[Sequence]) -> None:
        """Stop sequences that nobody waits for any more."""
        for sequence in sequences:
            sequence.abort()
        self._waiting.drop_done()
        self._release([sequence for sequence in self._running.values() if sequence.is_done])

    @property
    def _is_short_worth_it(self) -> bool:
        """Tell whether to prefill what does not fill a prefill: retries come one by one, and wait for others."""
        return len(self._running) * 2 < self._shapes.num_slots or self._waiting.has_first_attempts

    def _encode_images(self, num_prefills: int, short: bool) -> None:
        """Encode images until the groups that are ready fill so many prefills."""
        while groups := self._waiting.next_to_encode(num_prefills, short=short):
            shortage = self._runner.encode_images([group.images for group in groups])
            if shortage is not None:
                self._encode_fewer(groups, shortage)
            self._waiting.move_encoded()

    def _encode_fewer(self, groups: list[PrefillGroup], shortage: OutOfMemory) -> None:
        """Encode one group's images at a time from now on; those that do not fit alone fail."""
        if len(groups) > 1:
            self._waiting.tiles_per_call = 1
            return
        self._fail(groups, shortage)
        self._waiting.drop_done()

    def _next_prefill(self, short: bool) -> list[PrefillGroup] | None:
        """Take the groups of the next prefill; None while the slots that run go first."""
        free_slots, free_pages = self._allocator.num_free_slots, self._allocator.num_free_pages
        groups = None
        if self._in_row or self._has_room(free_slots, free_pages):
            groups = self._waiting.take(free_slots, free_pages, short=short)
        self._in_row = bool(groups)
        return groups

    def _has_room(self, free_slots: int, free_pages: int) -> bool:
        """Tell whether as many prefills as are to be launched in a row would find room, or half of all is free."""
        num, (num_slots, num_pages) = self._shapes.prefills_in_row, self._last_prefill
        enough_slots = free_slots >= min(num * num_slots, self._shapes.num_slots // 2)
        return num == 1 or (enough_slots and free_pages >= min(num * num_pages, self._shapes.pages // 2))

    def _prefill(self, groups: list[PrefillGroup]) -> InFlight | None:
        sequences = [sequence for group in groups for sequence in group.sequences]
        for sequence in sequences:
            sequence.allocation = self._allocator.allocate(sequence.max_tokens)
        batch = make_batch(groups, self._waiting.num_padded_tokens, self._shapes.bucket)
        run = partial(self._runner.prefill, batch, [group.images for group in groups])
        launched = try_in_memory(run, self._counters)
        if isinstance(launched, OutOfMemory):
            self._release(sequences)
            self._prefill_fewer(groups, launched)
            return None
        for sequence in sequences:
            sequence.status = Status.RUNNING
            self._running[sequence.allocation.slot] = sequence
        self._last_prefill = len(sequences), sum(group.num_pages for group in groups)
        self._in_flight.append(launched)
        return launched

    def _prefill_fewer(self, groups: list[PrefillGroup], shortage: OutOfMemory) -> None:
        """Make prefills half as large from now on; a group that does not fit alone fails."""
        if not self._waiting.shrink(groups):
            self._fail(groups, shortage)

    def _decode(self) -> InFlight | None:
        """Launch a step of the next decode batch that has anything to do."""
        batch, running = self._next_batch()
        if not running:
            return None
        lengths = [sequence.num_tokens for sequence in running.values()]
        self._counters.num_busy_slot_steps += len(lengths)
        self._counters.num_attention_pairs += sum(lengths)
        run = partial(self._runner.decode, running, batch, partial(self._read_due, batch))
        launched = try_in_memory(run, self._counters)
        if isinstance(launched, OutOfMemory):  # its shape is always the same: what the allocator kept back must do
            launched = run()
        self._in_flight.append(launched)
        return launched

    def _next_batch(self) -> tuple[int, dict[int, Sequence]]:
        """Choose a decode batch, in turn, that has running sequences; return its number, and these by slot."""
        num = self._shapes.num_batches
        for batch in ((self._turn + i) % num for i in range(num)):
            own = {slot: one for slot, one in self._running.items() if slot // self._shapes.slots == batch}
            if own:
                self._turn = (batch + 1) % num
                return batch, own
        return 0, {}

    def _num_due(self, launched: InFlight) -> int:
        """Count what is to be read now that this was launched behind it.

        A step's sequences may have one token that is not read yet, so all before is due: their prefills, their batch's
        last step. Behind a prefill as many may be unread as there are devices at work.
        """
        if launched.batch is None:
            return len(self._in_flight) - self._shapes.num_batches
        return _num_before(list(self._in_flight)[:-1], launched.batch)

    def _read_due(self, batch: int) -> None:
        """Read the newest tokens of a decode batch, whose next step is being launched."""
        self._read(_num_before(self._in_flight, batch))

    def _read(self, num: int) -> None:
        for _ in range(num):
            self._in_flight.popleft().read()

    def _postprocess(self, num_due: int) -> None:
        """Read the tokens of so many launches; release the slots of sequences that ended."""
        self._read(num_due)
        ended = [sequence for sequence in self._running.values() if sequence.completion.finish_reason]
        self._release(ended)
        for sequence in ended:
            if sequence.retry():
                self._waiting.add([group_of_one(sequence)])
                self._counters.num_retries += 1
            else:
                self._finish(sequence, Status.FINISHED)

    def _fail(self, groups: list[PrefillGroup], shortage: OutOfMemory) -> None:
        for sequence in (sequence for group in groups for sequence in group.sequences):
            if sequence.completion.end_retry():  # the answer of its first attempt stands
                self._finish(sequence, Status.FINISHED)
                continue
            message = f"{describe_length(sequence.prompt)} do not fit the device alone: {shortage.message}"
            sequence.failure = Failure(stage="generate", type="OutOfMemory", message=message)
            self._finish(sequence, Status.FAILED)

    def _finish(self, sequence: Sequence, status: Status) -> None:
        self._counters.num_rows += 1
        self._counters.num_prompt_tokens += len(sequence.prompt.token_ids)
        self._counters.num_answer_tokens += sequence.completion.num_tokens
        sequence.status = status  # last: its caller may read it from now on

    def _release(self, sequences: Collection[Sequence]) -> None:
        """Take back slots and pages, of sequences that run or that were about to."""
        if not sequences:
            return
        allocations = [sequence.allocation for sequence in sequences]
        self._runner.release(allocations)
        for sequence in sequences:
            self._running.pop(sequence.allocation.slot, None)
        self._allocator.free(allocations)


def _num_before(launches: Iterable[InFlight], batch: int) -> int:
    """Count the launches up to the last one that a decode batch's sequences have a token of."""
    due = [i for i, one in enumerate(launches, start=1) if one.batch in (None, batch)]
    return due[-1] if due else 0
