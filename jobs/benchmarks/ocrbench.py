"""OCRBench, a thousand questions about text in images: echo840's OCRBench, test.

Columns: dataset string, question string, question_type string (the splits), answer list of strings or one string,
image {bytes, path}. There are no ids: a question's is its position.
"""

from collections.abc import Iterator, Sequence

from jobs.benchmarks.prompts import fill
from jobs.benchmarks.rows import encoded, read_rows
from pipeline.scoring.ocrbench import contains_answer, contains_answer_of_any_width, contains_formula
from schemas.benchmark import Benchmark, Judged, Numbers, Question, Reference, Summary

_FORMULAS = "HME100k"


def ask(path: str, prompt: str) -> Iterator[Question]:
    """Yield all questions; {question}."""
    rows = read_rows(path, ("dataset", "question", "question_type", "answer", "image"))
    for position, row in enumerate(rows):
        answers = (row["answer"],) if isinstance(row["answer"], str) else tuple(row["answer"])
        yield Question(
            id=str(position),
            prompt=fill(prompt, {"question": row["question"].strip()}),
            images=(encoded(row["image"]),),
            reference=Reference(answers=answers, kind=row["dataset"]),
            split=row["question_type"],
        )


def judge(question: Question, answer: str) -> Judged:
    """Score the answer: right where an accepted one is in it; lmms-eval's wider rule is counted beside it."""
    accepted = question.reference.answers
    if question.reference.kind == _FORMULAS:
        hit = wide = contains_formula(answer, accepted)
    else:
        hit, wide = contains_answer(answer, accepted), contains_answer_of_any_width(answer, accepted)
    return question.marked(answer, float(hit), answer.strip() or None, (float(wide),))


def _hits(group: Sequence[Judged]) -> list[float]:
    return [sum(one.score for one in group), sum(one.counts[0] for one in group)]


def _scores(rows: Numbers, hits: Numbers, wide: Numbers) -> dict[str, Numbers]:
    """Return the score of a thousand, which the original leaves failed answers out of."""
    return {
        "score of 1000": 1000 * hits / rows,
        "score of 1000, any width": 1000 * wide / rows,
        **_accuracy(rows, hits, wide),
    }


def _accuracy(rows: Numbers, hits: Numbers, wide: Numbers) -> dict[str, Numbers]:
    return {"accuracy": hits / rows}


OCRBENCH = Benchmark(
    name="ocrbench",
    data="hf://datasets/echo840/OCRBench/data/test-*.parquet",
    prompt="{question}",
    max_new_tokens=128,
    ask=ask,
    judge=judge,
    summarise=Summary(add=_hits, numbers=_scores, split_numbers=_accuracy),
)
