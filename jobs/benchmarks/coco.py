"""COCO captions, one sentence for each photograph: lmms-lab's COCO-Caption2017, validation (5,000 images).

Columns: question_id string (the image's file name), answer list of five captions or so, image {bytes, path}.
CIDEr weighs words by how many of all the dataset's images have them in their captions, whatever part is asked about.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice

import numpy as np

from jobs.benchmarks.prompts import fill
from jobs.benchmarks.rows import encoded, read_rows, truths
from pipeline.scoring.captions import LONGEST, Words, bleu_counts, bleu_of, cider_d, ngram_frequencies, rouge_l
from pipeline.scoring.words import java_words, plain_words
from schemas.benchmark import Benchmark, Judged, NgramFrequencies, Numbers, Question, Reference, Summary
from schemas.errors import Refused


def ask(path: str, prompt: str) -> Iterator[Question]:
    """Yield all images; the template has no fields. The captions are read twice, first to count their words."""
    rows = read_rows(path, ("answer",))
    frequencies = ngram_frequencies([plain_words(caption) for caption in row["answer"]] for row in rows)
    for row in read_rows(path, ("question_id", "answer", "image")):
        captions = truths(row["answer"], row["question_id"])
        yield Question(
            id=str(row["question_id"]),
            prompt=fill(prompt, {}),
            images=(encoded(row["image"]),),
            reference=Reference(answers=captions, frequencies=frequencies),
        )


def judge(question: Question, answer: str) -> Judged:
    """Return the image's CIDEr-D over our own words, and what BLEU and ROUGE-L add up."""
    frequencies = question.reference.frequencies
    if frequencies is None:
        raise Refused(f"the reference of {question.id} must have n-gram frequencies, got none")
    captions = [plain_words(caption) for caption in question.reference.answers]
    return _judged(question, plain_words(answer), captions, frequencies)


def _sums(group: Sequence[Judged]) -> list[float]:
    counts = zip(*(one.counts for one in group), strict=True)
    return [sum(one.score for one in group), *map(sum, counts)]


def _scores(rows: Numbers, cider: Numbers, *counts: Numbers) -> dict[str, Numbers]:
    """Return CIDEr-D (published times 100), BLEU-4 to BLEU-1 and ROUGE-L."""
    said, right = np.array(counts[:LONGEST]), np.array(counts[LONGEST : 2 * LONGEST])
    num_words, reference_words, rouge = counts[2 * LONGEST :]
    bleu = bleu_of(said, right, num_words, reference_words)
    return {
        "cider": cider / rows,
        **{f"bleu-{length}": bleu[length - 1] for length in range(LONGEST, 0, -1)},
        "rouge-l": rouge / rows,
    }


SUMMARY = Summary(add=_sums, numbers=_scores)


def published_scores(questions: Sequence[Question], answers: Mapping[str, str]) -> dict[str, float]:
    """Return the numbers of a summary over the words that pycocoevalcap's Java tokeniser makes; answers by question
    id."""
    captions = [caption for question in questions for caption in question.reference.answers]
    words = iter(java_words([*captions, *(answers.get(question.id, "") for question in questions)]))
    truth = [list(islice(words, len(question.reference.answers))) for question in questions]
    frequencies = ngram_frequencies(truth)
    return SUMMARY(
        [_judged(question, next(words), some, frequencies) for question, some in zip(questions, truth, strict=True)]
    )


def _judged(question: Question, said: Words, captions: Sequence[Words], frequencies: NgramFrequencies) -> Judged:
    counts = bleu_counts(said, captions)
    return question.judged(
        cider_d(said, captions, frequencies),
        " ".join(said) or None,
        (*counts.said, *counts.right, counts.num_words, counts.reference_words, rouge_l(said, captions)),
    )


COCO = Benchmark(
    name="coco",
    data="hf://datasets/lmms-lab/COCO-Caption2017/data/val-*.parquet",
    prompt="Provide a one-sentence caption for the provided image.",
    max_new_tokens=64,
    ask=ask,
    judge=judge,
    summarise=SUMMARY,
)
