"""VQAv2, open questions about photographs: lmms-lab's VQAv2, validation (214,354 questions).

Columns: question_id int, question string, image {bytes, path}, answer_type string (yes/no, number, other: the splits),
answers list of {answer string, answer_confidence, answer_id}, ten a question. The test split's answers are null.
"""

from collections.abc import Iterator

from jobs.benchmarks.prompts import SHORT_ANSWER, fill
from jobs.benchmarks.rows import encoded, read_rows, truths
from pipeline.scoring.summary import mean_score
from pipeline.scoring.vqa import m4c_normalised, vqa_accuracy
from schemas.benchmark import Benchmark, Judged, Question, Reference


def ask(path: str, prompt: str) -> Iterator[Question]:
    """Yield all questions; {question}."""
    for row in read_rows(path, ("question_id", "question", "image", "answers"), ("answer_type",)):
        yield Question(
            id=str(row["question_id"]),
            prompt=fill(prompt, {"question": row["question"]}),
            images=(encoded(row["image"]),),
            reference=Reference(answers=truths(row["answers"], row["question_id"])),
            split=row["answer_type"],
        )


def judge(question: Question, answer: str) -> Judged:
    """Judge by VQA's own accuracy of the answer as LLaVA hands it in, normalised."""
    handed_in = m4c_normalised(answer)
    return question.marked(answer, vqa_accuracy(handed_in, question.reference.answers), handed_in or None)


VQAV2 = Benchmark(
    name="vqav2",
    data="hf://datasets/lmms-lab/VQAv2/data/validation-*.parquet",
    prompt=f"{{question}}\n{SHORT_ANSWER}",
    max_new_tokens=16,
    ask=ask,
    judge=judge,
    summarise=mean_score("vqa accuracy"),
)
