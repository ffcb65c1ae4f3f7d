"""VizWiz, what blind people asked about their photographs: lmms-lab's VizWiz-VQA, validation (4,319 questions).

Columns: question_id string, question string, image {bytes, path}, answers list of ten strings,
category string (number, other, unanswerable, yes/no: the splits). The test split's answers are null.
Answers are judged as VQAv2's.
"""

from collections.abc import Iterator

from jobs.benchmarks.prompts import SHORT_ANSWER, fill
from jobs.benchmarks.rows import encoded, read_rows, truths
from jobs.benchmarks.vqav2 import judge
from pipeline.scoring.summary import mean_score
from schemas.benchmark import Benchmark, Question, Reference


def ask(path: str, prompt: str) -> Iterator[Question]:
    """Yield all questions; {question}, capitalised as lmms-eval does (the rest in lower case)."""
    for row in read_rows(path, ("question_id", "question", "image", "answers"), ("category",)):
        yield Question(
            id=row["question_id"],
            prompt=fill(prompt, {"question": row["question"].capitalize()}),
            images=(encoded(row["image"]),),
            reference=Reference(answers=truths(row["answers"], row["question_id"])),
            split=row["category"],
        )


VIZWIZ = Benchmark(
    name="vizwiz",
    data="hf://datasets/lmms-lab/VizWiz-VQA/data/val-*.parquet",
    prompt="{question}\nWhen the provided information is insufficient, respond with 'Unanswerable'.\n" + SHORT_ANSWER,
    max_new_tokens=128,
    ask=ask,
    judge=judge,
    summarise=mean_score("vqa accuracy"),
)
