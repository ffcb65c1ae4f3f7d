"""OCRBench, a thousand questions about text in images: echo840's OCRBench, test.

Columns: dataset string, question string, question_type string (the splits), answer list of strings or one string,
image {bytes, path}. There are no ids: a question's is its position.
"""

from collections.abc import Iterator, Sequence

from jobs.benchmarks.prompts import fill
from jobs.benchmarks.rows import encoded, read_rows
from pipeline.scoring.ocrbench import contains_answer, contains_answer_of_any_width, contains_formula
from pipeline.scoring.summary import by_split, mean
from schemas.benchmark import Benchmark, Judged, Question, Reference

_FORMULAS = "HME100k"


def ask(path: str, prompt: str) -> Iterator[Question]:
    """All questions; {question}."""
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
    """Right where an accepted answer is in what was said; lmms-eval's wider rule is counted beside it."""
    accepted = question.reference.answers
    if question.reference.kind == _FORMULAS:
        hit = wide = contains_formula(answer, accepted)
    else:
        hit, wide = contains_answer(answer, accepted), contains_answer_of_any_width(answer, accepted)
    return question.judged(float(hit), answer.strip() or None, (float(wide),))


def summarise(judged: Sequence[Judged]) -> dict[str, float]:
    """The score of a thousand, which the original leaves failed answers out of, and shares by type of question."""
    accuracy = mean([one.score for one in judged])
    wide = mean([one.counts[0] for one in judged])
    shares = by_split(judged, lambda some: {"accuracy": mean([one.score for one in some])})
    return {"score of 1000": 1000 * accuracy, "score of 1000, any width": 1000 * wide, **shares}


OCRBENCH = Benchmark(
    name="ocrbench",
    data="hf://datasets/echo840/OCRBench/data/test-*.parquet",
    prompt="{question}",
    max_new_tokens=128,
    ask=ask,
    judge=judge,
    summarise=summarise,
)
