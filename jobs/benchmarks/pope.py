"""POPE, whether an object is in a photograph: lmms-lab's POPE, test (9,000 questions).

Columns: question_id string, question string, answer string (yes, no), image {bytes, path},
category string (adversarial, popular, random: the splits; each counts its questions from 1).
"""

from collections.abc import Iterator

from jobs.benchmarks.prompts import SHORT_ANSWER, fill
from jobs.benchmarks.rows import encoded, read_rows
from pipeline.scoring.pope import YES_AND_NO, Said, outcome, said
from schemas.benchmark import Benchmark, Judged, Question, Reference
from schemas.errors import Refused


def ask(path: str, prompt: str) -> Iterator[Question]:
    """Yield all questions; {question}."""
    for row in read_rows(path, ("question_id", "question", "answer", "image", "category")):
        yield Question(
            id=f"{row['category']}-{row['question_id']}",
            prompt=fill(prompt, {"question": row["question"].strip()}),
            images=(encoded(row["image"]),),
            reference=Reference(answers=(_truth(row["question_id"], row["answer"]),)),
            split=row["category"],
        )


def judge(question: Question, answer: str) -> Judged:
    """Score the answer: right or wrong, and which of the four cells it falls in."""
    found = said(answer)
    truth: Said = "yes" if question.reference.answers[0] == "yes" else "no"
    return question.judged(float(found == truth), found, outcome(found, truth))


def _truth(id: str, answer: str) -> Said:
    match answer.lower().strip():
        case "yes":
            return "yes"
        case "no":
            return "no"
    raise Refused(f"the answer of question {id} must be yes or no, got {answer!r}")


POPE = Benchmark(
    name="pope",
    data="hf://datasets/lmms-lab/POPE/data/test-*.parquet",
    prompt=f"{{question}}\n{SHORT_ANSWER}",
    max_new_tokens=128,
    ask=ask,
    judge=judge,
    summarise=YES_AND_NO,
)
