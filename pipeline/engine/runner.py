"""What runs on the device: prefills and decode steps, over one cache."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.engine.batch import Batch, prefix_alone
from pipeline.engine.draft import Draft
from pipeline.engine.kernels.choose import fused_kernels
from pipeline.engine.kernels.device import Reading, Stopwatch, side_stream, to_device
from pipeline.engine.kernels.layout import Layout, Segment, layout, round_up
from pipeline.engine.kernels.pages import PAGE, Seat, num_pages
from pipeline.engine.kernels.torch_attention import SPAN_STEP, Attend, attend_one_by_one, attend_together
from pipeline.engine.network.kv_cache import Cache, Stored, Write, write_plainly
from pipeline.engine.network.load import LoadedModel
from pipeline.engine.network.memory import cache_shape
from pipeline.engine.sampling import DrawState, Sampler, row_seed
from pipeline.engine.sequence import Pictures, PrefillGroup, Row, draft_of
from pipeline.engine.sizes import Sizes
from pipeline.engine.slots import Slots
from schemas.engine import BLOCK, Sampling
from schemas.sample import TokenIds

_MOST_PREFIXES = 8  # kept at once: the cells of a sweep may each have their own


@dataclass(frozen=True, slots=True, kw_only=True)
class Launched:
    """Tokens on their way to the host: those of `drafts` stand in the reading at the given places."""

    reading: Reading
    drafts: tuple[tuple[int, Draft], ...]


class Runner:
    """The network with its cache and its slots. One thread uses it; nothing in it waits for the device."""

    def __init__(self, model: LoadedModel, sampling: Sampling, sizes: Sizes) -> None:
        self._model, self._sampling, self._sizes = model, sampling, sizes
        self._device, self._decoder = model.device, model.decoder
        self._kernel, write = _kernels(sizes)
        shape = cache_shape(model.decoder.shape, sizes.pages)
        self.cache = Cache(shape, model.decoder.rotary(sizes.capacity), model.decoder.parts, write)
        self._num_pages = num_pages(sizes.capacity)  # of a row, at most
        stop_ids = () if sampling.ignore_eos else model.stop_ids
        self._sampler = Sampler(sampling, model.num_tokens, torch.tensor(stop_ids, dtype=torch.int64).to(self._device))
        self._num_seen = self._sampler.width if sampling.penalises else 0
        self._slots = Slots(sizes.slots, self._num_pages, self._num_seen, self._device)
        self._fused = fused_kernels(sizes.prefill_kernels)
        self._tiles_per_call = sizes.tiles_per_call
        self._prefixes: dict[bytes, Stored] = {}
        self._graph: torch.cuda.CUDAGraph | None = None
        self.stopwatch = Stopwatch(self._device)
        self.counts: Counter[str] = Counter()

    @torch.inference_mode()
    def see(self, groups: Iterable[PrefillGroup]) -> None:
        """Compute the features of the groups' images."""
        pictures = {id(group.pictures): group.pictures for group in groups}
        num_tiles = sum(own.num_tiles for own in pictures.values())
        with self.stopwatch("vision"):
            self._encode(list(pictures.values()))
        self.counts["images"] += sum(len(own.sample.image_sizes) for own in pictures.values())
        self.counts["tiles"] += num_tiles
        self.counts["tile places"] += round_up(num_tiles, self._tiles_per_call)

    def _encode(self, pictures: Sequence[Pictures]) -> None:
        samples = [own.sample for own in pictures]
        features = None
        while features is None:
            try:
                features = self._model.vision.encode(samples, self._tiles_per_call)
            except torch.OutOfMemoryError:
                if self._tiles_per_call == 1:
                    raise
            if features is None:  # out of the handler: its traceback no longer holds the tensors of the attempt
                self.counts["out of memory"] += 1
                self._tiles_per_call //= 2
                torch.cuda.empty_cache()
        for own, feature in zip(pictures, features, strict=True):
            own.features = feature

    @torch.inference_mode()
    def prefill(self, batch: Batch, pictures: Iterable[Pictures]) -> Launched:
        """Run a batch, whose image tokens are those of `pictures` in order, and draw the first tokens behind it."""
        with self.stopwatch("prefill"):
            self._begin_with_prefixes(batch)
            return self._begin(batch, self._run(batch, pictures))

    def _begin_with_prefixes(self, batch: Batch) -> None:
        """Let rows begin with the prefix of their job, which is run when its first row comes."""
        begun: dict[bytes, list[Segment]] = {}
        for segment in batch.segments:
            if len(segment.prefix):
                begun.setdefault(segment.prefix.tobytes(), []).append(segment)
        for name, segments in begun.items():
            if name not in self._prefixes:
                if len(self._prefixes) == _MOST_PREFIXES:
                    del self._prefixes[next(iter(self._prefixes))]
                self._prefixes[name] = self._learn(segments[0].prefix, segments[0].seats[0], batch.num_places)
            self.cache.paste(self._prefixes[name], [seat for one in segments for seat in one.seats])

    def _learn(self, prefix: TokenIds, seat: Seat, num_places: int) -> Stored:
        """Run a prefix in the pages of a row that is about to be.

        A prefill's places, even where the batch has more: what else is in it must not decide how this is rounded.
        """
        num_places = min(num_places, self._sizes.prefill_tokens)
        self._run(prefix_alone(prefix, seat, num_places, self._sizes.bucket), ())
        return self.cache.copy(seat, len(prefix))

    def _run(self, batch: Batch, pictures: Iterable[Pictures]) -> Tensor:
        """What becomes of the tokens that others are drawn after, (drawn, hidden)."""
        x, attend = self._embed(batch, pictures), self._kernel or attend_one_by_one
        hidden = self._decoder.prefill(x, self._layout(batch), self.cache, attend, self._fused)
        self.counts["prefills"] += 1
        self.counts["tokens"] += batch.num_tokens
        self.counts["prefix tokens"] += batch.num_prefix_tokens
        self.counts["pairs"] += batch.num_pairs
        self.counts["token places"] += batch.num_places
        return hidden

    def _layout(self, batch: Batch) -> Layout:
        return layout(
            batch.segments,
            num_places=batch.num_places,
            num_drawn=round_up(self._sizes.drawn, BLOCK),
            capacity=self._sizes.capacity,
            device=self._device,
        )

    def _embed(self, batch: Batch, pictures: Iterable[Pictures]) -> Tensor:
        """(places, hidden) embeddings, image tokens replaced by their features."""
        token_ids = batch.token_ids
        embeddings = self._decoder.embed(self._to_device(token_ids))
        features = [own.features for own in pictures if own.features is not None]
        if features:
            places = np.flatnonzero(token_ids == self._model.image_token_id)
            embeddings.index_copy_(0, self._to_device(places), torch.cat(features))
        return embeddings

    def _begin(self, batch: Batch, hidden: Tensor) -> Launched:
        """Draw the tokens that follow the prompts' last ones, (drawn, hidden), and set their slots to work."""
        num, endings = len(batch.rows), batch.endings
        self.counts["drawn"] += num
        slots, lengths = np.full(len(hidden), self._slots.dummy, np.int64), np.zeros(len(hidden), np.int64)
        slots[:num], lengths[:num] = [s.seats[0].slot for s in endings], [s.end for s in endings]
        tables = np.zeros((len(hidden), self._num_pages), np.int64)
        tables[:num] = [s.seats[0].table(self._num_pages) for s in endings]
        state = self._state(batch.rows, len(hidden))
        draw = self._sampler.draw(self._decoder.logits(hidden), state)
        taken, positions, pages = (self._to_device(numbers) for numbers in (slots, lengths, tables))
        self._slots.begin(taken, positions, pages, state=state, draw=draw)
        drafts = tuple((place, draft_of(row)) for place, row in enumerate(batch.rows))
        return Launched(reading=Reading(draw.token_ids, draw.logprobs), drafts=drafts)

    def _state(self, rows: Sequence[Row], num: int) -> DrawState:
        """What drawing must know of the rows, filled up to `num`."""
        seeds = np.zeros(num, np.int64)
        seen = torch.zeros(num, self._num_seen, dtype=torch.bool)
        penalties = torch.ones(num)
        for place, row in enumerate(rows):
            seeds[place] = row_seed(self._sampling.seed, row.sample.id, row.prompt.id)
            if self._num_seen:
                seen[place, row.prompt.token_ids] = True
                penalties[place] = draft_of(row).penalty
        return DrawState(
            seeds=self._to_device(seeds),
            steps=self._to_device(np.zeros_like(seeds)),
            seen=to_device(seen, self._device) if self._num_seen else None,
            penalties=to_device(penalties, self._device) if self._num_seen else None,
        )

    @torch.inference_mode()
    def decode(self, longest: int) -> Reading:
        """Draw one more token in every slot; `longest` is the length of the longest row in them."""
        with self.stopwatch("decode"):
            if self._graph is not None:
                self._graph.replay()
            else:
                self._step(min(round_up(longest + 1, SPAN_STEP), self._num_pages * PAGE))
        self.counts["decode steps"] += 1
        self.counts["slots"] += self._slots.num
        return Reading(self._slots.token_ids[: self._slots.num], self._slots.logprobs[: self._slots.num])

    def _step(self, span: int) -> None:
        rows, slots = slice(self._slots.num_rows), slice(self._slots.num)
        x = self._decoder.embed(self._slots.token_ids[rows])
        attend = self._kernel or partial(attend_together, span=span)
        hidden = self._decoder.step(x, self._slots.positions[rows], self._slots.tables[slots], self.cache, attend)
        self._slots.advance(self._sampler.draw(self._decoder.logits(hidden), self._slots.state()))

    @torch.inference_mode()
    def warm_up(self) -> None:
        """Run steps that count for nothing, while every slot rests: they compile. The compiler chooses by the sizes
        that it sees first, and those are a step's in every engine, recorded or not, on one device or on several."""
        with _beside(self._device):
            for _ in range(3):  # lets libraries allocate what they would not while recording
                self._step(self._num_pages * PAGE)

    @torch.inference_mode()
    def capture(self) -> None:
        """Record the decode step as one CUDA graph; to be called after warming up, while every slot rests."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=side_stream(self._device)):  # its own is the first device's that had one
            self._step(self._num_pages * PAGE)
        self._graph = graph

    @torch.inference_mode()
    def rest(self, seats: Sequence[Seat]) -> None:
        """Let slots rest until their next prefill: no step from now on reads or writes their pages."""
        self._slots.rest(self._to_device(np.array([seat.slot for seat in seats], np.int64)))

    @torch.inference_mode()
    def clear(self, seat: Seat) -> None:
        """Forget the numbers of a row that overflowed: they would spoil the next in its pages, masked or not."""
        self.cache.clear(seat)

    def _to_device(self, numbers: npt.NDArray[np.int64]) -> Tensor:
        return to_device(numbers, self._device)


@contextmanager
def _beside(device: torch.device) -> Iterator[None]:
    """Work beside the current stream, which waits for it."""
    stream, current = side_stream(device), torch.cuda.current_stream(device)
    stream.wait_stream(current)
    with torch.cuda.stream(stream):
        yield
    current.wait_stream(stream)


def _kernels(sizes: Sizes) -> tuple[Attend | None, Write]:
    """Our own attention to what the cache holds, where it is asked for, and what writes there."""
    if sizes.decode_kernel == "sdpa":
        return None, write_plainly
    from pipeline.engine.kernels.triton_kernels import (  # here, as triton comes with torch for GPUs alone
        attend_pages,
        write_pages,
    )

    return attend_pages, write_pages
