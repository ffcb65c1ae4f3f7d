"""ScienceQA, multiple choice of school science: lmms-lab's ScienceQA, the test questions with an image (2,017).

Columns: question string, choices list of strings, answer int (from 0), hint string, image {bytes, path},
subject string (the splits). There are no ids: a question's is its position. ScienceQA-FULL has the same columns; its
questions without an image are asked without one.
"""

from collections.abc import Iterator

from jobs.benchmarks.prompts import LETTER_ONLY, fill
from jobs.benchmarks.rows import encoded, read_rows
from pipeline.scoring.choice import LETTERS, lettered, scienceqa_letter
from pipeline.scoring.summary import mean_score
from schemas.benchmark import Benchmark, Judged, Question, Reference


def ask(path: str, prompt: str) -> Iterator[Question]:
    """Yield all questions; {question}, {options} and {context}, which says `Context: ` before the hint where there is
    one."""
    rows = read_rows(path, ("question", "choices", "answer", "hint", "image"), ("subject",))
    for position, row in enumerate(rows):
        options = tuple(row["choices"])
        context = f"Context: {row['hint']}" if row["hint"] else ""
        yield Question(
            id=str(position),
            prompt=fill(prompt, {"question": row["question"], "options": lettered(options), "context": context}),
            images=(encoded(row["image"]),) if row["image"] else (),
            reference=Reference(answers=(LETTERS[row["answer"]],), options=options),
            split=row["subject"],
        )


def judge(question: Question, answer: str) -> Judged:
    """Judge as LLaVA parses the answer, white space at its ends apart; what it cannot parse is wrong."""
    letter = scienceqa_letter(answer.strip(), len(question.reference.options))
    return question.judged(float(letter == question.reference.answers[0]), letter)


SCIENCEQA = Benchmark(
    name="scienceqa",
    data="hf://datasets/lmms-lab/ScienceQA/ScienceQA-IMG/test-*.parquet",
    prompt=f"{{context}}\n{{question}}\n{{options}}\n{LETTER_ONLY}",
    max_new_tokens=16,
    ask=ask,
    judge=judge,
    summarise=mean_score("accuracy"),
)
