"""Sample the next tokens from logits, for all rows of a batch at once and on their device."""

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from schemas.engine import Sampling

_WIDTH_STEP = 16  # float32 numbers in 64 bytes
_WORD = 32  # tokens in a word of a mask


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingState:
    """Numbers that the sampler needs of each row, on the device; sampling updates `seen` in place."""

    seeds: Tensor  # (rows,) int64
    steps: Tensor  # (rows,) int64: tokens sampled so far
    seen: Tensor | None  # (rows, the sampler's width) bool: tokens of the prompt and the answer; None without a penalty
    penalties: Tensor | None = None  # (rows,) float32: of the tokens seen, 1 for none; None where `seen` is
    masks: Tensor | None = None  # (rows, words) int32, a bit a token: those that may come next; None without forms


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampled:
    """One token for every row, and its log-probability under the model's own distribution; both (rows,).

    `top_ids` and `top_logprobs` are those of the likeliest tokens, (rows, as many as are told); None where none are.
    """

    token_ids: Tensor
    logprobs: Tensor
    top_ids: Tensor | None = None
    top_logprobs: Tensor | None = None

    @property
    def parts(self) -> tuple[Tensor, ...]:
        """Return the tensors that there are."""
        both = (self.token_ids, self.logprobs)
        return both if self.top_ids is None or self.top_logprobs is None else (*both, self.top_ids, self.top_logprobs)


class Sampler:
    """Samples one token a row; no number of a row depends on another's, and nothing waits for the host."""

    def __init__(self, sampling: Sampling, num_tokens: int, stop_ids: Tensor, num_words: int = 0) -> None:
        self._sampling = sampling
        self._num_tokens = num_tokens
        self.width = -(-num_tokens // _WIDTH_STEP) * _WIDTH_STEP  # of what is known about every token
        self.num_seen = self.width if sampling.penalises else 0  # tokens whose use is remembered, for penalties
        self.num_top = sampling.logprobs or 0  # likely tokens that are told
        self.num_words = num_words if sampling.takes_forms else 0  # of a row's mask
        ends = torch.zeros(self.width, dtype=torch.bool, device=stop_ids.device)
        self._ends = ends.index_fill(0, stop_ids[stop_ids < num_tokens], True)
        self._bits = torch.arange(_WORD, dtype=torch.int32, device=stop_ids.device)

    def sample(self, logits: Tensor, state: SamplingState) -> Sampled:
        """Sample the next token of every row from its logits, (rows, vocabulary)."""
        logits = self._padded(logits)
        scores = self._penalise(logits, state)
        if self._sampling.temperature:
            chosen = pick(_truncate(scores, self._sampling)[:, : self._num_tokens], noise(state.seeds, state.steps))
        else:
            chosen = scores.argmax(-1)
        total = logits.logsumexp(-1)
        own = logits.gather(1, chosen[:, None])[:, 0] - total
        top = _likeliest(logits, self.num_top) if self.num_top else None
        if state.seen is not None:  # last: a step that ran out of memory before can be run again
            state.seen.scatter_(1, chosen[:, None], True)
        if top is None:
            return Sampled(token_ids=chosen, logprobs=own)
        return Sampled(token_ids=chosen, logprobs=own, top_ids=top, top_logprobs=logits.gather(1, top) - total[:, None])

    def _padded(self, logits: Tensor) -> Tensor:
        """Copy the scores to float32, and set those of the table's padding to -inf.

        Every row begins at a multiple of 64 bytes: where it began elsewhere, a GPU would sum it in another order, and a
        row's numbers would depend on its index.
        """
        padded = torch.full((len(logits), self.width), -torch.inf, device=logits.device)
        padded[:, : self._num_tokens] = logits[:, : self._num_tokens]
        return padded

    def _penalise(self, logits: Tensor, state: SamplingState) -> Tensor:
        """Apply the repetition penalty, then forbid an end before `min_new_tokens`: transformers' order; then what the
        row's form does not allow."""
        if state.seen is not None and state.penalties is not None:
            penalty = state.penalties[:, None]  # a factor of 1 changes no bit
            penalised = torch.where(logits < 0, logits * penalty, logits / penalty)
            logits = torch.where(state.seen, penalised, logits)
        if self._sampling.min_new_tokens:
            early = (state.steps < self._sampling.min_new_tokens)[:, None]
            logits = logits.masked_fill(early & self._ends, -torch.inf)
        if state.masks is not None:
            allowed = (state.masks[:, :, None] >> self._bits & 1).flatten(1)[:, : self.width]
            logits = torch.where(allowed.bool(), logits, -torch.inf)
        return logits


def _likeliest(logits: Tensor, num: int) -> Tensor:
    """Return the tokens with the highest scores, (rows, num); of equal ones in the order in which greedy sampling would
    take them, which no other row decides."""
    left, found = logits.clone(), []
    for _ in range(num):
        best = left.argmax(-1, keepdim=True)
        found.append(best)
        left.scatter_(1, best, -torch.inf)
    return torch.cat(found, dim=1)


def pick(probabilities: Tensor, noise: Tensor) -> Tensor:
    """Return the token at which each row's cumulative probability passes its number in [0, 1).

    In vocabulary order and double precision: what another batch shape does to the last bits moves no boundary far.
    """
    reached = probabilities.double().cumsum(-1)
    wanted = noise[:, None].double() * reached[:, -1:]
    last = probabilities.shape[1] - 1  # where NaN ends up, which must not index out of bounds: CUDA would not recover
    return torch.searchsorted(reached, wanted, right=True)[:, 0].clamp(max=last)


def noise(seeds: Tensor, steps: Tensor) -> Tensor:
    """Return a number in [0, 1) for each row's seed and step: the 64-bit mixing of splitmix64, in wrapping int64."""
    mixed = seeds + (steps + 1) * -0x61C8864680B583EB
    mixed = (mixed ^ _shift(mixed, 30)) * -0x40A7B892E31B1A47
    mixed = (mixed ^ _shift(mixed, 27)) * -0x6B2FB644ECCEEE15
    mixed = mixed ^ _shift(mixed, 31)
    return _shift(mixed, 32).double() * 2.0**-32  # 32 bits: their product with a sum stays below the sum


def sequence_seed(seed: int, sample_id: str, prompt_id: str) -> int:
    """Return the seed of a sequence: it follows from the job's seed and the ids, not from when or where it runs."""
    name = f"{seed}\0{sample_id}\0{prompt_id}".encode()
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "little", signed=True)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Shift right and fill with zeros, where `>>` alone would fill with the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _truncate(scores: Tensor, sampling: Sampling) -> Tensor:
    """Apply temperature, then top-k, then top-p; return the probabilities that are left, not yet summing to 1."""
    below = (scores - scores.amax(-1, keepdim=True)).double()  # at most 0: the smallest temperature makes no inf or NaN
    probabilities = (below / sampling.temperature).softmax(-1)
    if sampling.top_k:
        kth = probabilities.topk(min(sampling.top_k, probabilities.shape[1])).values[:, -1:]
        probabilities = probabilities.where(probabilities >= kth, 0)
    if sampling.top_p < 1:
        probabilities = probabilities / probabilities.sum(-1, keepdim=True)
        ordered, order = probabilities.sort(descending=True, stable=True)
        before = ordered.cumsum(-1) - ordered  # mass of the likelier tokens
        kept = torch.zeros_like(probabilities, dtype=torch.bool).scatter_(1, order, before < sampling.top_p)
        probabilities = probabilities.where(kept, 0)
    return probabilities
