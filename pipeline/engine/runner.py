"""What runs on the device: prefills and decode steps, over one cache."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.engine.arithmetic import causal_pairs
from pipeline.engine.attention import Attend, cached
from pipeline.engine.cache import Cache
from pipeline.engine.chunks import Chunk, beginnings, rests
from pipeline.engine.decoder import Places
from pipeline.engine.device import Reading, Stopwatch, to_device
from pipeline.engine.draft import Draft
from pipeline.engine.memory import cache_shape
from pipeline.engine.model import LoadedModel
from pipeline.engine.rows import Family, Pictures, draft_of
from pipeline.engine.sampling import DrawState, Sampler, row_seed
from pipeline.engine.sizes import Sizes
from pipeline.engine.slots import Slots
from pipeline.engine.waiting import Group, round_up
from schemas.engine import Sampling

# The CPU's flash kernel walks over keys in blocks of this: whole blocks behind a row change none of its bits.
_SPAN_STEP = 512


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
        shape = cache_shape(model.decoder.shape, sizes.slots, sizes.capacity)
        self._cache = Cache(shape, model.decoder.rotary(sizes.capacity), model.decoder.parts)
        stop_ids = () if sampling.ignore_eos else model.stop_ids
        self._sampler = Sampler(sampling, model.num_tokens, torch.tensor(stop_ids, dtype=torch.int64).to(self._device))
        self._num_seen = self._sampler.width if sampling.penalises else 0
        self._slots = Slots(sizes.slots, self._num_seen, self._device)
        self._attend = _attend(sizes)
        self._tiles_per_call = sizes.tiles_per_call
        self._graph: torch.cuda.CUDAGraph | None = None
        self.stopwatch = Stopwatch(self._device)
        self.counts: Counter[str] = Counter()

    @torch.inference_mode()
    def see(self, group: Group, next_up: Iterable[Family]) -> None:
        """Compute the features of the group's images, and of those to come that fit the tower's last call."""
        pictures = {id(f.pictures): f.pictures for f in group.families if f.pictures.num_tiles}
        num_tiles = sum(own.num_tiles for own in pictures.values())
        if not num_tiles:
            return
        for own in (family.pictures for family in next_up):
            if 0 < own.num_tiles <= -num_tiles % self._tiles_per_call and id(own) not in pictures:
                pictures[id(own)] = own
                num_tiles += own.num_tiles
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
    def prefill(self, group: Group, seats: Sequence[Sequence[int]]) -> list[Launched]:
        """Run a group's prompts into their slots, and draw a first token for each."""
        with self.stopwatch("prefill"):
            chunk = beginnings(group, seats, self._slots.dummy)
            embeddings = self._embed(chunk, group.families)
            ends = self._to_device(chunk.lengths - 1)
            hidden = self._decoder.prefill(embeddings, ends, chunk.seats, self._cache)
            launched = [self._begin(chunk, hidden)]
            for family, own in zip(group.families, seats, strict=True):
                if len(own) > 1:
                    self._cache.copy(own[0], own[1:], family.num_shared)
            for chunk in rests(group, seats, self._slots.dummy, self._sizes.rest_rows):
                launched.append(self._extend(chunk, group.length))
        self.counts["prefills"] += 1
        return launched

    def _extend(self, chunk: Chunk, shared: int) -> Launched:
        """Run the rest of prompts whose beginnings, in the bucket `shared`, their slots hold."""
        span = min(shared + chunk.token_ids.shape[1], self._sizes.capacity)
        embeddings = self._embed(chunk, ())
        # Padding may reach beyond the slot, where there are no angles for it.
        positions = self._to_device(chunk.positions.clip(max=self._sizes.capacity - 1))
        places = Places(positions=positions, ends=self._to_device(chunk.lengths - 1))
        return self._begin(chunk, self._decoder.extend(embeddings, places, chunk.seats, self._cache, span))

    def _embed(self, chunk: Chunk, families: Iterable[Family]) -> Tensor:
        """(rows, length, hidden) embeddings, image tokens replaced by their features."""
        real = chunk.slots != chunk.dummy
        self.counts["tokens"] += int(chunk.lengths[real].sum())
        self.counts["pairs"] += int(causal_pairs(chunk.starts, chunk.lengths)[real].sum())
        self.counts["token places"] += chunk.token_ids.size
        embeddings = self._decoder.embed(self._to_device(chunk.token_ids))
        features = [f.pictures.features for f in families if f.pictures.features is not None]
        if features:
            places = np.flatnonzero(chunk.token_ids == self._model.image_token_id)
            embeddings.flatten(0, 1).index_copy_(0, self._to_device(places), torch.cat(features))
        return embeddings

    def _begin(self, chunk: Chunk, hidden: Tensor) -> Launched:
        """Draw the tokens that follow a chunk's last ones, (rows, hidden), and set the slots to work whose prompts have
        ended."""
        self.counts["drawn"] += len(chunk.ending)
        logits = self._decoder.logits(hidden)
        state = self._state(chunk)
        draw = self._sampler.draw(logits, state)
        lengths = self._to_device(chunk.starts + chunk.lengths)
        self._slots.begin(self._to_device(chunk.drawn_slots), lengths, state, draw)
        return Launched(
            reading=Reading(draw.token_ids, draw.logprobs),
            drafts=tuple((place, draft_of(row)) for place, row in chunk.ending),
        )

    def _state(self, chunk: Chunk) -> DrawState:
        seeds = np.zeros(len(chunk.slots), np.int64)
        seen = torch.zeros(len(seeds), self._num_seen, dtype=torch.bool)
        penalties = torch.ones(len(seeds))
        for place, row in chunk.ending:
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
                self._step(min(round_up(longest + 1, _SPAN_STEP), self._sizes.capacity))
        self.counts["decode steps"] += 1
        self.counts["slots"] += self._slots.num
        return Reading(self._slots.token_ids[: self._slots.num], self._slots.logprobs[: self._slots.num])

    def _step(self, span: int) -> None:
        num = self._slots.num
        embeddings = self._decoder.embed(self._slots.token_ids[:num, None])
        positions = self._slots.positions[:num, None]
        hidden = self._decoder.step(embeddings, positions, self._cache, self._attend, span)
        self._slots.advance(self._sampler.draw(self._decoder.logits(hidden), self._slots.state()))

    @torch.inference_mode()
    def capture(self) -> None:
        """Record the decode step as one CUDA graph; to be called while every slot rests."""
        stream = torch.cuda.Stream(self._device)
        stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(stream):
            for _ in range(3):  # compiles, and lets libraries allocate what they would not while recording
                self._step(self._sizes.capacity)
        torch.cuda.current_stream(self._device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._step(self._sizes.capacity)
        self._graph = graph

    @torch.inference_mode()
    def rest(self, slots: Sequence[int]) -> None:
        """Let slots rest until their next prefill."""
        self._slots.rest(self._to_device(np.array(slots, np.int64)))

    @torch.inference_mode()
    def clear(self, slot: int) -> None:
        """Forget the numbers of a slot that overflowed: they would spoil the next row's, masked or not."""
        self._cache.clear(slot)

    def _to_device(self, numbers: npt.NDArray[np.int64]) -> Tensor:
        return to_device(numbers, self._device)


def _attend(sizes: Sizes) -> Attend:
    """The attention of the decode step."""
    if sizes.decode_kernel == "sdpa":
        return cached
    from pipeline.engine.kernels import attend_slots  # here, as triton comes with torch for GPUs alone

    return attend_slots
