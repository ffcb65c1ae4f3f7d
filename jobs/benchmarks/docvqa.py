"""DocVQA, questions about scanned pages: lmms-lab's DocVQA, validation (5,349 questions).

Columns: questionId string, question string, image {bytes, path}, answers list of strings; null in the test split.
"""

from collections.abc import Iterator

from jobs.benchmarks.prompts import SHORT_ANSWER, fill
from jobs.benchmarks.rows import encoded, read_rows, truths
from pipeline.scoring.anls import anls, anls_lenient
from pipeline.scoring.summary import mean_score
from schemas.benchmark import Benchmark, Judged, Question, Reference


def ask(path: str, prompt: str) -> Iterator[Question]:
    """Yield all questions; {question}."""
    for row in read_rows(path, ("questionId", "question", "image", "answers")):
        yield Question(
            id=str(row["questionId"]),
            prompt=fill(prompt, {"question": row["question"]}),
            images=(encoded(row["image"]),),
            reference=Reference(answers=truths(row["answers"], row["questionId"])),
        )


def judge(question: Question, answer: str) -> Judged:
    """Judge by ANLS as the paper has it; the lenient one, which lmms-eval publishes, is counted beside it."""
    answer, accepted = answer.strip(), question.reference.answers
    return question.marked(answer, anls(answer, accepted), answer or None, (anls_lenient(answer, accepted),))


DOCVQA = Benchmark(
    name="docvqa",
    data="hf://datasets/lmms-lab/DocVQA/DocVQA/validation-*.parquet",
    prompt=f"{{question}}\n{SHORT_ANSWER}",
    max_new_tokens=32,
    ask=ask,
    judge=judge,
    summarise=mean_score("anls", beside="anls lenient"),
)
