"""AI2D, multiple choice about diagrams of science lessons: lmms-lab's ai2d, test (3,088 questions).

Columns: question string, options list of strings, answer string (the position of the right option, from 0),
image {bytes, path}. There are no ids: a question's is its position.
"""

from collections.abc import Iterator

from jobs.benchmarks.prompts import LETTER_ONLY, fill
from jobs.benchmarks.rows import encoded, read_rows
from pipeline.scoring.choice import LETTERS, leading_letter, lettered
from pipeline.scoring.summary import mean_score
from schemas.benchmark import Benchmark, Judged, Question, Reference


def ask(path: str, prompt: str) -> Iterator[Question]:
    """Yield all questions; {question} and {options}."""
    for position, row in enumerate(read_rows(path, ("question", "options", "answer", "image"))):
        options = tuple(row["options"])
        yield Question(
            id=str(position),
            prompt=fill(prompt, {"question": row["question"], "options": lettered(options)}),
            images=(encoded(row["image"]),),
            reference=Reference(answers=(LETTERS[int(row["answer"])],), options=options),
        )


def judge(question: Question, answer: str) -> Judged:
    """Score the answer: right where the answer begins with the letter and a full stop, or is the letter."""
    letter = leading_letter(answer, len(question.reference.options))
    return question.judged(float(letter == question.reference.answers[0]), letter)


AI2D = Benchmark(
    name="ai2d",
    data="hf://datasets/lmms-lab/ai2d/data/test-*.parquet",
    prompt=f"{{question}}\n{{options}}\n{LETTER_ONLY}",
    max_new_tokens=16,
    ask=ask,
    judge=judge,
    summarise=mean_score("accuracy"),
)
