"""A decode batch: the slots that take a step together, from part to part of the network."""

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial

import numpy as np
import torch
from torch import Tensor

from pipeline.engine.kernels.device import (
    HostCopy,
    Stopwatch,
    event_on,
    hand_over,
    on_side_stream,
    side_stream,
    to_device,
)
from pipeline.engine.kernels.layout import round_up
from pipeline.engine.kernels.pages import PAGE, Ints, num_pages
from pipeline.engine.kernels.torch_attention import SPAN_STEP, Attend, attend_together
from pipeline.engine.network.decoder import Decoder
from pipeline.engine.network.kv_cache import KVCache
from pipeline.engine.sampling import Sampled, Sampler, SamplingState
from pipeline.engine.shapes import Shapes
from pipeline.engine.slots import SlotPositions, SlotTokens
from schemas.engine import BLOCK


class DecodeBatch:
    """Slots that take a step together; its shape is always the same, whichever of them are busy.

    Over several devices a step goes from one to the next, so that other batches' steps can run on those it has left.
    Rows are padded up to whole blocks of a product: in one that is not whole a CPU's bfloat16 products round a row by
    its index.
    """

    def __init__(
        self,
        decoder: Decoder,
        cache: KVCache,
        sampler: Sampler,
        attend_pages: Attend | None,
        shapes: Shapes,
    ) -> None:
        self._decoder, self._cache, self._sampler, self._attend_pages = decoder, cache, sampler, attend_pages
        self.num_slots, self._num_pages = shapes.slots, num_pages(shapes.max_sequence_length)
        self._num_rows = round_up(self.num_slots, BLOCK)
        devices = [part.device for part in decoder.parts]
        self._positions = [SlotPositions(self._num_rows, self._num_pages, device) for device in devices]
        self._tokens = SlotTokens(self._num_rows, sampler, devices[-1])
        # What a part begins with, where the one before left it, and what it ends with, for the one behind.
        self._token_ids = self._tokens.token_ids.to(devices[0])
        shape = (self._num_rows, decoder.shape.hidden)
        self._ends = [torch.zeros(shape, dtype=decoder.dtype, device=device) for device in devices[:-1]]
        self._begins = [end.to(device) for end, device in zip(self._ends, devices[1:], strict=True)]
        # With forms the step is cut before the sampler: masks are made on the host while the network is at work.
        self._samples_apart = sampler.num_words > 0
        self._logits: Tensor | None = None  # of a step that is cut
        self._graphs: list[torch.cuda.CUDAGraph] | None = None
        self._sampled: torch.cuda.Event | None = None  # once the last tokens are

    def start(self, own: Ints, rows: Ints, lengths: Ints, tables: Ints, state: SamplingState, sampled: Sampled) -> None:
        """Start sequences behind their prompts.

        `state` and `sampled` are of several batches' sequences, and of padding: those at the indices `own` belong to
        this batch's `rows`, with prompts of `lengths` tokens and the pages of `tables`.
        """
        where = np.full(len(sampled.token_ids), self._num_rows, np.int64)  # the row that no step reads
        where[own] = rows
        self._tokens.start(to_device(where, self._tokens.token_ids.device), state, sampled)
        self._sampled = event_on(self._tokens.token_ids.device)
        for positions in self._positions:
            positions.start(*(to_device(numbers, positions.device) for numbers in (rows, lengths, tables)))

    def release(self, rows: Ints) -> None:
        """Make slots idle until their next prefill: no step from now on reads or writes their pages."""
        for positions in self._positions:
            positions.release(to_device(rows, positions.device))

    def step(
        self, longest: int, stopwatch: Stopwatch, make_masks: Callable[[], Tensor | None] | None = None
    ) -> HostCopy:
        """Sample one more token in every slot, whose sequences have `longest` tokens at most.

        `make_masks` is called once the network is at work; where it returns masks, of all rows, they replace those of
        the step before.
        """
        span = min(round_up(longest + 1, SPAN_STEP), self._num_pages * PAGE)
        for number, positions in enumerate(self._positions):
            self._take_over(number)
            with stopwatch("decode", positions.device):
                if self._graphs is not None:
                    self._graphs[number].replay()
                else:
                    self._run(number, span)
        if self._samples_apart:
            self._sample_apart(stopwatch, make_masks)
        if self._graphs is None:  # last: a step that ran out of memory before can be run again
            for positions in self._positions:
                positions.advance()
        self._sampled = event_on(self._tokens.token_ids.device)
        return HostCopy(*self._tokens.newest(self.num_slots).parts)

    def warm_up(self) -> None:
        """Run steps while every slot is idle, so that they compile.

        The compiler chooses by the sizes that it sees first, and those are a step's in every engine, recorded or not.
        """
        with ExitStack() as streams:
            for positions in self._positions:
                streams.enter_context(on_side_stream(positions.device))
            for _ in range(3):  # lets libraries allocate what they would not while recording
                for number in range(len(self._positions)):
                    self._take_over(number)
                    self._run_recorded(number)  # idle slots stay where they are
                if self._samples_apart:
                    self._sample()

    def capture(self) -> None:
        """Record each part of the step as a CUDA graph; to be called after warming up, while every slot is idle."""
        steps = [partial(self._run_recorded, number) for number in range(len(self._positions))]
        devices = [positions.device for positions in self._positions]
        graphs = [_captured(step, device) for step, device in zip(steps, devices, strict=True)]
        if self._samples_apart:
            graphs.append(_captured(self._sample, devices[-1]))
        self._graphs = graphs

    def _take_over(self, number: int) -> None:
        """Copy what a part begins with from where the part before it left it, or the sampler its tokens.

        Tokens wait for the sampler alone, and not for steps of other batches that were launched behind it.
        """
        if number == 0:
            hand_over(self._tokens.token_ids, self._token_ids.device, out=self._token_ids, ready=self._sampled)
        else:
            begin = self._begins[number - 1]
            hand_over(self._ends[number - 1], begin.device, out=begin)

    def _run(self, number: int, span: int) -> None:
        """Run one part of the step; behind the last, sample."""
        here = self._positions[number]
        x = self._decoder.embed(self._token_ids[: self._num_rows]) if number == 0 else self._begins[number - 1]
        positions, tables = here.positions[: self._num_rows], here.tables[: self.num_slots]
        attend = self._attend_pages or partial(attend_together, span=span)
        x = self._decoder.step(number, x, positions, tables, self._cache, attend)
        if number < len(self._ends):
            self._ends[number].copy_(x)
        else:
            self._logits = self._decoder.logits(x)
            if not self._samples_apart:
                self._sample()

    def _run_recorded(self, number: int) -> None:
        """Run one part of the step and go on by a token: once recorded it needs no memory that it could lack."""
        self._run(number, self._num_pages * PAGE)
        self._positions[number].advance()

    def _sample_apart(self, stopwatch: Stopwatch, make_masks: Callable[[], Tensor | None] | None) -> None:
        """Make the masks, now that the network is at work, and sample behind it."""
        masks = make_masks() if make_masks is not None else None
        if masks is not None:
            self._tokens.set_masks(masks)
        with stopwatch("decode", self._positions[-1].device):
            if self._graphs is not None:
                self._graphs[-1].replay()
            else:
                self._sample()

    def _sample(self) -> None:
        """Sample from the logits of the network's last part, which are no longer kept unless a graph reads them."""
        logits = self._logits
        assert logits is not None
        if not self._samples_apart:
            self._logits = None
        self._tokens.advance(self._sampler.sample(logits, self._tokens.state()))


def _captured(step: Callable[[], None], device: torch.device) -> torch.cuda.CUDAGraph:
    graph = torch.cuda.CUDAGraph()
    # the stream: a graph's own is the first device's that had one
    with torch.cuda.device(device), torch.cuda.graph(graph, stream=side_stream(device)):
        step()
    return graph
