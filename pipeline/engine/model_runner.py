"""Run the model on the device: image encoding, prefills and decode steps, over one key-value cache."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.engine.batch import Batch, prefix_batch
from pipeline.engine.completion import Completion
from pipeline.engine.decode_batch import DecodeBatch
from pipeline.engine.kernels.choose import fused_kernels
from pipeline.engine.kernels.device import HostCopy, Stopwatch, hand_over, to_device
from pipeline.engine.kernels.layout import Layout, Segment, layout, round_up
from pipeline.engine.kernels.pages import PAGE, Allocation, Ints, num_pages
from pipeline.engine.kernels.torch_attention import Attend, attend_one_by_one
from pipeline.engine.network.kv_cache import KeyValues, KVCache, Write, write_plainly
from pipeline.engine.network.load import LoadedModel
from pipeline.engine.network.memory import cache_shape
from pipeline.engine.out_of_memory import OutOfMemory, try_in_memory
from pipeline.engine.prefill_group import ImageInputs
from pipeline.engine.sampling import Sampler, SamplingState, sequence_seed
from pipeline.engine.sequence import Sequence
from pipeline.engine.shapes import Shapes
from pipeline.engine.slots import SlotMasks, fill_masks
from pipeline.engine.statistics import Counters
from schemas.engine import BLOCK, Sampling
from schemas.sample import Sample, TokenIds

_MAX_PREFIXES = 8  # kept at once: the cells of a sweep may each have their own


@dataclass(frozen=True, slots=True, kw_only=True)
class InFlight:
    """Sampled tokens on their way to the host; each completion's are at its index of the copy."""

    copy: HostCopy
    completions: tuple[tuple[int, Completion], ...]
    batch: int | None = None  # of a step: which decode batch it was of

    def read(self) -> None:
        """Wait for the tokens, and append them to their completions."""
        token_ids, logprobs, *top = self.copy.wait()
        for index, completion in self.completions:
            likeliest = list(zip(*(part[index] for part in top), strict=True))
            completion.append(int(token_ids[index]), logprobs[index], likeliest)


class ModelRunner:
    """The network with its cache and its slots. One thread uses it; nothing in it waits for the device."""

    def __init__(self, model: LoadedModel, sampling: Sampling, shapes: Shapes) -> None:
        self._model, self._sampling, self._shapes = model, sampling, shapes
        self._device, self._decoder = model.device, model.decoder
        self._devices = [part.device for part in model.decoder.parts]
        self._attend_pages, write = _kernels(shapes)
        cached = cache_shape(model.decoder.shape, shapes.pages, shapes.kv_cache_dtype)
        self.cache = KVCache(cached, model.decoder.rotary(shapes.max_sequence_length), model.decoder.parts, write)
        self._num_pages = num_pages(shapes.max_sequence_length)  # of a sequence, at most
        stop_ids = torch.tensor(() if sampling.ignore_eos else model.stop_ids, dtype=torch.int64)
        if sampling.takes_forms:
            model.forms.prepare(sampling.form)
        self._sampler = Sampler(sampling, model.num_tokens, stop_ids.to(self._devices[-1]), model.forms.num_words)
        self._batches = [self._decode_batch() for _ in range(shapes.num_batches)]
        self._masks = [self._slot_masks(shapes.slots) for _ in range(shapes.num_batches)]
        self._fused = fused_kernels(shapes.prefill_kernels)
        self._tiles_per_call = shapes.tiles_per_call
        self._prefix_cache: dict[bytes, KeyValues] = {}
        self.stopwatch = Stopwatch(self._devices)
        self.counters = Counters()

    @torch.inference_mode()  # as all that runs: a compiler takes tensors that were made otherwise for another kind
    def _decode_batch(self) -> DecodeBatch:
        return DecodeBatch(self._decoder, self.cache, self._sampler, self._attend_pages, self._shapes)

    @torch.inference_mode()
    def _slot_masks(self, num: int) -> SlotMasks:
        return SlotMasks(round_up(num, BLOCK), self._sampler.num_words, pinned=self._device.type == "cuda")

    @torch.inference_mode()
    def encode_images(self, images: Iterable[ImageInputs]) -> OutOfMemory | None:
        """Compute the features of these images; where memory holds not even one tile, return that and compute none.

        Calls of the vision tower that do not fit are half as large from then on.
        """
        distinct = {id(one): one for one in images}.values()
        samples = [one.sample for one in distinct]
        with self.stopwatch("vision", self._device):
            while isinstance(features := self._try_tower(samples), OutOfMemory):
                if self._tiles_per_call == 1:
                    return features
                self._tiles_per_call //= 2
        num_tiles = sum(len(sample.tiles) for sample in samples)
        for one, feature in zip(distinct, features, strict=True):
            one.features = feature
        self.counters.num_images += sum(len(sample.image_sizes) for sample in samples)
        self.counters.num_tiles += num_tiles
        self.counters.num_padded_tiles += round_up(num_tiles, self._tiles_per_call)
        return None

    def _try_tower(self, samples: list[Sample]) -> list[Tensor] | OutOfMemory:
        run = partial(self._model.vision.encode, samples, self._tiles_per_call)
        return try_in_memory(run, self.counters)

    @torch.inference_mode()
    def prefill(self, batch: Batch, images: Iterable[ImageInputs]) -> InFlight:
        """Run a batch, whose image tokens are those of `images` in order; sample first tokens and start slots."""
        self._clear_pages(batch)
        self._copy_prefixes(batch)
        hidden = self._run(batch, images)
        with self.stopwatch("prefill", hidden.device):
            return self._start(batch, hidden)

    def _clear_pages(self, batch: Batch) -> None:
        """Zero the pages that the sequences' answers are to fill.

        Whoever had them may have left what is not finite, without a sign of it in any token that was read: by a step
        too many, or before it was aborted. Attention multiplies by 0 what is behind a token, which a NaN survives.
        """
        pages = [page for one in batch.endings for page in one.allocations[0].pages[one.end // PAGE :]]
        self.cache.clear(pages)

    def _copy_prefixes(self, batch: Batch) -> None:
        """Copy cached prefixes to the pages of the sequences that begin with them; one that is new runs first."""
        segments: dict[bytes, list[Segment]] = {}
        for segment in batch.segments:
            if len(segment.prefix):
                segments.setdefault(segment.prefix.tobytes(), []).append(segment)
        for key, own in segments.items():
            if key not in self._prefix_cache:
                self._store_prefix(key, own[0].prefix, own[0].allocations[0], batch.num_padded_tokens)
            allocations = [allocation for segment in own for allocation in segment.allocations]
            self.cache.copy_to(allocations, self._prefix_cache[key])

    def _store_prefix(self, key: bytes, prefix: TokenIds, allocation: Allocation, num_padded_tokens: int) -> None:
        """Run a prefix in the pages of a sequence that is about to start, and cache its keys and values.

        It runs in a prefill's padded tokens, even where the batch has more: what else is in the batch must not decide
        how its numbers are rounded.
        """
        if len(self._prefix_cache) == _MAX_PREFIXES:
            del self._prefix_cache[next(iter(self._prefix_cache))]
        num_padded_tokens = min(num_padded_tokens, self._shapes.prefill_tokens)
        self._run(prefix_batch(prefix, allocation, num_padded_tokens, self._shapes.bucket), ())
        self._prefix_cache[key] = self.cache.read(allocation, len(prefix))

    def _run(self, batch: Batch, images: Iterable[ImageInputs]) -> Tensor:
        """Return the last hidden states of the tokens that others are sampled after, (sampled, hidden).

        They are on the last device; every device is free for other work once its layers have run.
        """
        x, attend = self._embed(batch, images), self._attend_pages or attend_one_by_one
        for number, device in enumerate(self._devices):
            x = hand_over(x, device)
            with self.stopwatch("prefill", device):
                x = self._decoder.prefill(number, x, self._layout(batch, device), self.cache, attend, self._fused)
        self.counters.num_prefills += 1
        self.counters.num_prefilled_tokens += batch.num_tokens
        self.counters.num_prefix_tokens += batch.num_prefix_tokens
        self.counters.num_attention_pairs += batch.num_attention_pairs
        self.counters.num_padded_tokens += batch.num_padded_tokens
        return x

    def _layout(self, batch: Batch, device: torch.device) -> Layout:
        return layout(
            batch.segments,
            num_padded_tokens=batch.num_padded_tokens,
            num_sampled=round_up(self._shapes.max_prompts_per_prefill, BLOCK),
            max_sequence_length=self._shapes.max_sequence_length,
            device=device,
        )

    def _embed(self, batch: Batch, images: Iterable[ImageInputs]) -> Tensor:
        """Look up embeddings, (padded tokens, hidden), those of image tokens replaced by their features."""
        token_ids = batch.token_ids
        embeddings = self._decoder.embed(self._to_device(token_ids))
        features = [one.features for one in images if one.features is not None]
        if features:
            indices = np.flatnonzero(token_ids == self._model.image_token_id)
            embeddings.index_copy_(0, self._to_device(indices), torch.cat(features))
        return embeddings

    def _start(self, batch: Batch, hidden: Tensor) -> InFlight:
        """Sample the tokens that follow the prompts' last ones, (sampled, hidden), and start the prompts' slots."""
        endings = batch.endings
        self.counters.num_first_tokens += len(batch.sequences)
        state = self._sampling_state(batch.sequences, len(hidden))
        sampled = self._sampler.sample(self._decoder.logits(hidden), state)
        slots, lengths = (
            np.array(one, np.int64) for one in zip(*((s.allocations[0].slot, s.end) for s in endings), strict=True)
        )
        tables = np.stack([segment.allocations[0].page_table(self._num_pages) for segment in endings])
        for batch_number, own, rows in self._by_batch(slots):
            self._batches[batch_number].start(own, rows, lengths[own], tables[own], state, sampled)
        completions = tuple((index, sequence.completion) for index, sequence in enumerate(batch.sequences))
        return InFlight(copy=HostCopy(*sampled.parts), completions=completions)

    def _by_batch(self, slots: Ints) -> Iterator[tuple[int, Ints, Ints]]:
        """Yield the decode batches that have any of these slots: the indices of its own, and its rows of them."""
        numbers, rows = np.divmod(slots, self._shapes.slots)
        for number in np.unique(numbers):
            own = np.flatnonzero(numbers == number)
            yield int(number), own, rows[own]

    def _sampling_state(self, sequences: Collection[Sequence], num: int) -> SamplingState:
        """Make what the sampler must know of the sequences, padded to `num` rows."""
        seeds, num_seen = np.zeros(num, np.int64), self._sampler.num_seen
        seen = torch.zeros(num, num_seen, dtype=torch.bool)
        penalties = torch.ones(num)
        for row, sequence in enumerate(sequences):
            seeds[row] = sequence_seed(self._sampling.seed, sequence.sample.id, sequence.prompt.id)
            if num_seen:
                seen[row, sequence.prompt.token_ids] = True
                penalties[row] = sequence.completion.penalty
        return SamplingState(
            seeds=to_device(seeds, self._devices[-1]),
            steps=to_device(np.zeros_like(seeds), self._devices[-1]),
            seen=to_device(seen, self._devices[-1]) if num_seen else None,
            penalties=to_device(penalties, self._devices[-1]) if num_seen else None,
            masks=self._first_masks(sequences, num),
        )

    def _first_masks(self, sequences: Collection[Sequence], num: int) -> Tensor | None:
        """Return the masks of the sequences' first tokens, padded to `num` rows; None in a job without forms."""
        if not self._sampler.num_words:
            return None
        completions = {row: sequence.completion for row, sequence in enumerate(sequences)}
        masks = SlotMasks(num, self._sampler.num_words, pinned=False)
        return to_device(fill_masks(masks, self._model.forms, completions), self._devices[-1])

    @torch.inference_mode()
    def decode(self, running: Mapping[int, Sequence], batch: int, read_due: Callable[[], None]) -> InFlight:
        """Sample one more token in every slot of a decode batch; `running` are its sequences by slot.

        Where any of them has a form, `read_due` is called once the network is at work: what may come next depends on
        the tokens before.
        """
        decode_batch, masks = self._batches[batch], self._masks[batch]
        longest = max((sequence.num_tokens for sequence in running.values()), default=0)
        first = batch * self._shapes.slots
        completions = {slot - first: sequence.completion for slot, sequence in running.items()}

        def make_masks() -> Tensor | None:
            if any(one.form for one in completions.values()):
                read_due()
            elif not masks.is_set:
                return None
            return fill_masks(masks, self._model.forms, completions)

        copy = decode_batch.step(longest, self.stopwatch, make_masks)
        self.counters.num_decode_steps += 1
        self.counters.num_slot_steps += decode_batch.num_slots
        return InFlight(copy=copy, completions=tuple(completions.items()), batch=batch)

    @torch.inference_mode()
    def warm_up(self) -> None:
        """Run steps while every slot is idle, so that they compile."""
        for batch in self._batches:
            batch.warm_up()

    @torch.inference_mode()
    def capture(self) -> None:
        """Record the decode steps as CUDA graphs; to be called after warming up, while every slot is idle."""
        for batch in self._batches:
            batch.capture()

    @torch.inference_mode()
    def release(self, allocations: Collection[Allocation]) -> None:
        """Make slots idle until their next prefill: no step from now on reads or writes their pages."""
        for number, _, rows in self._by_batch(np.array([allocation.slot for allocation in allocations], np.int64)):
            self._batches[number].release(rows)

    def _to_device(self, numbers: npt.NDArray[np.int64]) -> Tensor:
        return to_device(numbers, self._device)


def _kernels(shapes: Shapes) -> tuple[Attend | None, Write]:
    """Return our own attention to pages, None where it is PyTorch's, and what writes to the cache."""
    if shapes.decode_kernel == "sdpa":
        return None, write_plainly
    from pipeline.engine.kernels.triton_kernels import (  # here, as triton comes with torch for GPUs alone
        attend_pages,
        write_pages,
    )

    return attend_pages, write_pages
