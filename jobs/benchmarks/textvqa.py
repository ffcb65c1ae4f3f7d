"""TextVQA, questions about text in photographs: lmms-lab's textvqa, validation (5,000 questions).

Columns: question_id int, question string, image {bytes, path}, answers list of ten strings, ocr_tokens list of strings.
"""

from collections.abc import Iterator

from jobs.benchmarks.prompts import SHORT_ANSWER, fill
from jobs.benchmarks.rows import encoded, read_rows, truths
from pipeline.scoring.summary import mean_score
from pipeline.scoring.vqa import m4c_accuracy, m4c_normalised
from schemas.benchmark import Benchmark, Judged, Question, Reference


def ask(path: str, prompt: str) -> Iterator[Question]:
    """Yield all questions; {question}, capitalised as lmms-eval does (the rest in lower case), and {ocr_tokens}."""
    for row in read_rows(path, ("question_id", "question", "image", "answers"), ("ocr_tokens",)):
        fields = {"question": row["question"].capitalize(), "ocr_tokens": ", ".join(row["ocr_tokens"] or ())}
        yield Question(
            id=str(row["question_id"]),
            prompt=fill(prompt, fields),
            images=(encoded(row["image"]),),
            reference=Reference(answers=truths(row["answers"], row["question_id"])),
        )


def judge(question: Question, answer: str) -> Judged:
    """Judge by TextVQA's accuracy, which normalises every text."""
    return question.marked(answer, m4c_accuracy(answer, question.reference.answers), m4c_normalised(answer) or None)


TEXTVQA = Benchmark(
    name="textvqa",
    data="hf://datasets/lmms-lab/textvqa/data/validation-*.parquet",
    prompt=f"{{question}}\n{SHORT_ANSWER}",
    max_new_tokens=128,
    ask=ask,
    judge=judge,
    summarise=mean_score("vqa accuracy"),
)
