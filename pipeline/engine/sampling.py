"""How a batch's next tokens are drawn from its logits."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline.engine.batch import Batch, Row
from pipeline.engine.model import LoadedModel
from schemas.engine import Sampling


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """One token for every row, and its log-probability under the model's own distribution; both (rows,)."""

    token_ids: Tensor
    logprobs: Tensor


class Sampler:
    """Draws the tokens of one batch, step after step."""

    def __init__(self, model: LoadedModel, sampling: Sampling, rows: Sequence[Row], batch: Batch) -> None:
        self._sampling = sampling
        self._num_tokens = model.num_tokens
        self._stop_ids = torch.tensor(model.stop_ids, device=model.device)
        self._step = 0
        self._seen = _seen(batch, model) if sampling.repetition_penalty != 1 else None
        self._noise = _noise(rows, sampling.seed).to(model.device) if sampling.temperature else None

    def draw(self, logits: Tensor) -> Draw:
        """The next token of every row from its logits, (rows, vocabulary)."""
        logits = logits[:, : self._num_tokens].float()
        scores = self._steer(logits)
        if self._noise is None:
            chosen = scores.argmax(-1)
        else:
            chosen = pick(_shape(scores, self._sampling), self._noise[:, self._step])
        if self._seen is not None:
            self._seen.scatter_(1, chosen[:, None], True)
        self._step += 1
        own = logits.gather(1, chosen[:, None])[:, 0] - logits.logsumexp(-1)
        return Draw(token_ids=chosen, logprobs=own)

    def _steer(self, logits: Tensor) -> Tensor:
        """Repetition penalty, then no end before `min_new_tokens`: transformers' order."""
        if self._seen is not None:
            penalty = self._sampling.repetition_penalty
            penalised = torch.where(logits < 0, logits * penalty, logits / penalty)
            logits = torch.where(self._seen, penalised, logits)
        if self._step < self._sampling.min_new_tokens:
            logits = logits.index_fill(1, self._stop_ids, -torch.inf)
        return logits


def pick(probabilities: Tensor, noise: Tensor) -> Tensor:
    """The token at which each row's cumulative probability passes its number in [0, 1).

    In vocabulary order and double precision: what another batch shape does to the last bits moves no boundary far.
    """
    reached = probabilities.double().cumsum(-1)
    wanted = noise[:, None].double() * reached[:, -1:]
    last = probabilities.shape[1] - 1  # where NaN ends up, which must not index out of bounds: CUDA would not recover
    return torch.searchsorted(reached, wanted, right=True)[:, 0].clamp(max=last)


def row_seed(seed: int, sample_id: str, prompt_id: str) -> int:
    """The seed of one row: it follows from the job's seed and the row's ids alone, not from when or where it runs."""
    name = f"{seed}\0{sample_id}\0{prompt_id}".encode()
    return int.from_bytes(hashlib.blake2b(name, digest_size=16).digest(), "little")


def _noise(rows: Sequence[Row], seed: int) -> Tensor:
    """One number in [0, 1) a row and step, (rows, steps); float32 keeps the largest well below 1."""
    noise = torch.zeros(len(rows), max(row.prompt.max_new_tokens for row in rows))
    for i, row in enumerate(rows):
        generator = np.random.Generator(np.random.Philox(row_seed(seed, row.sample.id, row.prompt.id)))
        steps = row.prompt.max_new_tokens
        noise[i, :steps] = torch.from_numpy(generator.random(steps, dtype=np.float32))
    return noise


def _seen(batch: Batch, model: LoadedModel) -> Tensor:
    """Which tokens a row's prompt holds, (rows, num_tokens); padding is no token of the prompt."""
    seen = torch.zeros(len(batch.token_ids), model.num_tokens, dtype=torch.int64)
    return seen.scatter_add_(1, batch.token_ids, batch.mask).bool().to(model.device)


def _shape(scores: Tensor, sampling: Sampling) -> Tensor:
    """Temperature, then top-k, then top-p; the probabilities that are left, not yet summing to 1."""
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
