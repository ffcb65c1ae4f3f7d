"""ChartQA, questions about charts: lmms-lab's ChartQA, test (2,500 questions).

Columns: type string (human_test, augmented_test: the splits human and augmented), question string, answer string,
image {bytes, path}. There are no ids: a question's is its position.
"""

from collections.abc import Iterator

from jobs.benchmarks.prompts import fill
from jobs.benchmarks.rows import encoded, read_rows
from pipeline.scoring.relaxed import relaxed_match
from pipeline.scoring.summary import mean_score
from schemas.benchmark import Benchmark, Judged, Question, Reference


def ask(path: str, prompt: str) -> Iterator[Question]:
    """Yield all questions; {question}."""
    for position, row in enumerate(read_rows(path, ("question", "answer", "image", "type"))):
        yield Question(
            id=str(position),
            prompt=fill(prompt, {"question": row["question"]}),
            images=(encoded(row["image"]),),
            reference=Reference(answers=(row["answer"],)),
            split=row["type"].removesuffix("_test"),
        )


def judge(question: Question, answer: str) -> Judged:
    """Score the answer: right within five per cent, or right as text."""
    answer = answer.strip()
    return question.marked(answer, float(relaxed_match(answer, question.reference.answers[0])), answer or None)


CHARTQA = Benchmark(
    name="chartqa",
    data="hf://datasets/lmms-lab/ChartQA/data/test-*.parquet",
    prompt="{question}\nAnswer the question with a single word.",
    max_new_tokens=16,
    ask=ask,
    judge=judge,
    summarise=mean_score("relaxed accuracy"),
)
