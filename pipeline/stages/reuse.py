"""Reuse: rows with the same images and prompts are answered once, and the others get a copy.

Exact, as an answer that is not drawn depends on its row alone: the same pixels, the same tokens, the same sampling.
"""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import numpy as np

from schemas.answer import Answer
from schemas.engine import Sampling
from schemas.sample import Sample

_MOST_BYTES = 64 * 2**20  # of answers that are kept
_BYTES_A_ROW = 1024  # what a row's answers take beside their texts and steps, at most
_BYTES_A_STEP = 256  # of log-probabilities, and of each likely token in them


class AnswerCache:
    """The answers of the rows that were seen last, as far as they fit its memory; any thread may use it."""

    def __init__(self, most_bytes: int = _MOST_BYTES) -> None:
        self._most_bytes = most_bytes
        self._lock = threading.Lock()  # guards all that follows
        self._kept: OrderedDict[bytes, tuple[tuple[Answer, ...], int]] = OrderedDict()  # the last used stands last
        self._num_bytes = 0
        self.num_reused = 0  # answers

    def answer(
        self, samples: Sequence[Sample], sampling: Sampling, generate: Callable[[list[Sample]], Iterable[Answer]]
    ) -> list[Answer]:
        """Return the answers of samples in their order, of equal ones those of the first; `generate` gives these."""
        keys = [key_of(sample, sampling) for sample in samples]
        found = {key: answers for key in dict.fromkeys(keys) if (answers := self._take(key)) is not None}
        new = {key: sample for key, sample in reversed(list(zip(keys, samples, strict=True))) if key not in found}
        asked = [(key, sample) for key, sample in zip(keys, samples, strict=True) if new.get(key) is sample]
        coming = iter(generate([sample for _, sample in asked]))
        for key, sample in asked:
            found[key] = tuple(next(coming) for _ in sample.prompts)
            self._keep(key, found[key])
        rest = list(coming)
        assert not rest, "an engine gives as many answers as there are prompts"
        with self._lock:
            first = {id(sample) for _, sample in asked}
            self.num_reused += sum(len(sample.prompts) for sample in samples if id(sample) not in first)
        return [_copied(answer, sample) for key, sample in zip(keys, samples, strict=True) for answer in found[key]]

    def _take(self, key: bytes) -> tuple[Answer, ...] | None:
        with self._lock:
            if key not in self._kept:
                return None
            self._kept.move_to_end(key)
            return self._kept[key][0]

    def _keep(self, key: bytes, answers: tuple[Answer, ...]) -> None:
        """Keep answers; one that failed may not fail again."""
        if any(answer.status == "error" for answer in answers):
            return
        size = _BYTES_A_ROW + sum(map(_size_of, answers))
        with self._lock:
            if size > self._most_bytes or key in self._kept:
                return
            self._kept[key] = answers, size
            self._num_bytes += size
            while self._num_bytes > self._most_bytes:
                _, (_, freed) = self._kept.popitem(last=False)
                self._num_bytes -= freed


def key_of(sample: Sample, sampling: Sampling) -> bytes:
    """Return what two samples share that have the same answers."""
    prompts = [(p.id, p.text, p.max_new_tokens, p.form, p.answer_prefix, p.failure) for p in sample.prompts]
    images = sample.image_sha256, sample.image_sizes, sample.tiles_per_image, sample.tiles.shape
    hashed = hashlib.blake2b(repr((sampling, images, prompts)).encode("utf-8", "surrogatepass"), digest_size=32)
    for prompt in sample.prompts:
        hashed.update(f"{len(prompt.token_ids)} {prompt.num_common} ".encode())
        hashed.update(prompt.token_ids.tobytes())
    hashed.update(np.ascontiguousarray(sample.tiles).data)
    return hashed.digest()


def _copied(answer: Answer, sample: Sample) -> Answer:
    return answer if answer.id == sample.id else replace(answer, id=sample.id)


def _size_of(answer: Answer) -> int:
    texts = sum(len(text or "") for text in (answer.text, answer.first_text, answer.prompt))
    return 4 * texts + sum(_BYTES_A_STEP * (1 + len(step.top)) for step in answer.steps or ())
