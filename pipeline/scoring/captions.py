"""CIDEr-D, BLEU and ROUGE-L of captions given as words, equal to those of pycocoevalcap for the same words."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from schemas.benchmark import NgramFrequencies, Numbers

LONGEST = 4  # words in an n-gram
_SIGMA = 6.0  # of CIDEr-D's penalty on a length that differs, in bigrams
_BETA = 1.2  # weighs recall in ROUGE-L
_TINY, _SMALL = 1e-15, 1e-9  # as the original avoids divisions by zero

Words = Sequence[str]
Ngram = tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class BleuCounts:
    """Counts that BLEU adds up over captions: n-grams said, n-grams that are right, and the lengths that decide
    brevity."""

    said: tuple[float, ...]  # by length of the n-gram, 1 to 4
    right: tuple[float, ...]
    num_words: float
    reference_words: float  # of the caption with the nearest length


def ngram_frequencies(images: Iterable[Sequence[Words]]) -> NgramFrequencies:
    """Count in how many images' captions each n-gram is; every image counts once."""
    counts: Counter[Ngram] = Counter()
    num_images = 0
    for captions in images:
        counts.update({ngram for caption in captions for ngram in _ngrams(caption)})
        num_images += 1
    return NgramFrequencies(num_images=num_images, counts=counts)


def cider_d(answer: Words, captions: Sequence[Words], frequencies: NgramFrequencies) -> float:
    """Return one image's CIDEr-D, 0 to 10; the corpus' is their mean. `frequencies` must be of all images together.

    The length that is penalised is the number of bigrams, and one image alone scores 0: both as the original has it.
    """
    said = _weighted(answer, frequencies)
    norms = _norms(said)
    total = 0.0
    for caption in captions:
        truth = _weighted(caption, frequencies)
        true_norms = _norms(truth)
        penalty = math.exp(-((_bigrams(answer) - _bigrams(caption)) ** 2) / (2 * _SIGMA**2))
        for length in range(LONGEST):
            overlap = sum(min(said[n], truth[n]) * truth[n] for n in said.keys() & truth.keys() if len(n) == length + 1)
            scale = norms[length] * true_norms[length]
            total += penalty * overlap / scale if scale else 0.0
    return 10 * total / LONGEST / len(captions)


def bleu_counts(answer: Words, captions: Sequence[Words]) -> BleuCounts:
    """Return one caption's part of BLEU; an n-gram is right as often as the caption that has it most often has it."""
    most: Counter[Ngram] = Counter()
    for caption in captions:
        most |= _ngrams(caption)
    right = _ngrams(answer) & most
    lengths = range(1, LONGEST + 1)
    return BleuCounts(
        said=tuple(float(max(0, len(answer) - length + 1)) for length in lengths),
        right=tuple(float(sum(count for n, count in right.items() if len(n) == length)) for length in lengths),
        num_words=float(len(answer)),
        reference_words=float(min((abs(len(c) - len(answer)), len(c)) for c in captions)[1]),
    )


def add_up_bleu(counts: Sequence[BleuCounts]) -> BleuCounts:
    """Return the counts of all captions together."""
    return BleuCounts(
        said=tuple(sum(one.said[index] for one in counts) for index in range(LONGEST)),
        right=tuple(sum(one.right[index] for one in counts) for index in range(LONGEST)),
        num_words=sum(one.num_words for one in counts),
        reference_words=sum(one.reference_words for one in counts),
    )


def bleu(counts: BleuCounts) -> tuple[float, ...]:
    """Return BLEU-1 to BLEU-4 of a caption's or a corpus' counts, unsmoothed, the nearest reference length."""
    said, right = np.array(counts.said)[:, None], np.array(counts.right)[:, None]
    found = bleu_of(said, right, np.array([counts.num_words]), np.array([counts.reference_words]))
    return tuple(found[:, 0].tolist())


def bleu_of(said: Numbers, right: Numbers, num_words: Numbers, reference_words: Numbers) -> Numbers:
    """Return BLEU-1 to BLEU-4, (4, corpora), of many corpora's counts: (4, corpora) by length of the n-gram, and
    (corpora)."""
    ratio = (num_words + _TINY) / (reference_words + _SMALL)
    brevity = np.exp(np.minimum(0, 1 - 1 / ratio))
    products = np.cumprod((right + _TINY) / (said + _SMALL), axis=0)
    return brevity * products ** (1 / np.arange(1, LONGEST + 1))[:, None]


def rouge_l(answer: Words, captions: Sequence[Words]) -> float:
    """Return one image's ROUGE-L; best precision and best recall may come from different captions."""
    common = [_longest_common(answer, caption) for caption in captions]
    precision = max(common) / max(1, len(answer))
    recall = max(length / max(1, len(caption)) for length, caption in zip(common, captions, strict=True))
    if not precision or not recall:
        return 0.0
    return (1 + _BETA**2) * precision * recall / (recall + _BETA**2 * precision)


def _ngrams(words: Words) -> Counter[Ngram]:
    return Counter(
        tuple(words[start : start + length])
        for length in range(1, LONGEST + 1)
        for start in range(len(words) - length + 1)
    )


def _weighted(words: Words, frequencies: NgramFrequencies) -> Mapping[Ngram, float]:
    """Return counts times the logarithm of how rare an n-gram is; one that no caption has is as rare as one that one
    has."""
    rarest = math.log(frequencies.num_images)
    return {
        ngram: count * (rarest - math.log(max(1, frequencies.counts.get(ngram, 0))))
        for ngram, count in _ngrams(words).items()
    }


def _norms(weights: Mapping[Ngram, float]) -> list[float]:
    squares = [0.0] * LONGEST
    for ngram, weight in weights.items():
        squares[len(ngram) - 1] += weight**2
    return [math.sqrt(square) for square in squares]


def _bigrams(words: Words) -> int:
    return max(0, len(words) - 1)


def _longest_common(one: Words, other: Words) -> int:
    row = [0] * (len(other) + 1)
    for word in one:
        diagonal = 0
        for index, against in enumerate(other, 1):
            longest = diagonal + 1 if word == against else max(row[index], row[index - 1])
            diagonal, row[index] = row[index], longest
    return row[-1]
