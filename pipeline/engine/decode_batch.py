"""A decode batch: the slots that take a step together, from part to part of the network."""

from contextlib import ExitStack
from functools import partial

import numpy as np
import torch

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
        num_seen: int,  # tokens of the vocabulary whose use is remembered, for penalties; 0 where there are none
    ) -> None:
        self._decoder, self._cache, self._sampler, self._attend_pages = decoder, cache, sampler, attend_pages
        self.num_slots, self._num_pages = shapes.slots, num_pages(shapes.max_sequence_length)
        self._num_rows = round_up(self.num_slots, BLOCK)
        devices = [part.device for part in decoder.parts]
        self._positions = [SlotPositions(self._num_rows, self._num_pages, device) for device in devices]
        self._tokens = SlotTokens(self._num_rows, num_seen, devices[-1])
        # What a part begins with, where the one before left it, and what it ends with, for the one behind.
        self._token_ids = self._tokens.token_ids.to(devices[0])
        shape = (self._num_rows, decoder.shape.hidden)
        self._ends = [torch.zeros(shape, dtype=decoder.dtype, device=device) for device in devices[:-1]]
        self._begins = [end.to(device) for end, device in zip(self._ends, devices[1:], strict=True)]
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

    def step(self, longest: int, stopwatch: Stopwatch) -> HostCopy:
        """Sample one more token in every slot, whose sequences have `longest` tokens at most."""
        span = min(round_up(longest + 1, SPAN_STEP), self._num_pages * PAGE)
        for number, positions in enumerate(self._positions):
            self._take_over(number)
            with stopwatch("decode", positions.device):
                if self._graphs is not None:
                    self._graphs[number].replay()
                else:
                    self._run(number, span)
        self._sampled = event_on(self._tokens.token_ids.device)
        return HostCopy(self._tokens.token_ids[: self.num_slots], self._tokens.logprobs[: self.num_slots])

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
                    self._run(number, self._num_pages * PAGE)

    def capture(self) -> None:
        """Record each part of the step as a CUDA graph; to be called after warming up, while every slot is idle."""
        graphs = []
        for number, positions in enumerate(self._positions):
            graph = torch.cuda.CUDAGraph()
            # the stream: a graph's own is the first device's that had one
            with torch.cuda.device(positions.device), torch.cuda.graph(graph, stream=side_stream(positions.device)):
                self._run(number, self._num_pages * PAGE)
            graphs.append(graph)
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
            self._tokens.advance(self._sampler.sample(self._decoder.logits(x), self._tokens.state()))
        here.advance()
