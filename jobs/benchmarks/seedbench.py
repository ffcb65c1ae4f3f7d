"""SEED-Bench, multiple choice about photographs: lmms-lab's SEED-Bench, the test questions about one image.

Columns: question_id string, question string, choice_a to choice_d strings, answer string (a letter),
data_type string (image, video), question_type_id int (the splits), image list of {bytes, path}.
The questions about videos, eight frames each, are left out: LLaVA-NeXT's published number is the images'.
"""

from collections.abc import Iterator

from jobs.benchmarks.prompts import LETTER_ONLY, fill
from jobs.benchmarks.rows import encoded, read_rows
from pipeline.scoring.choice import first_letter, lettered
from pipeline.scoring.summary import mean_score
from schemas.benchmark import Benchmark, Judged, Question, Reference

_CHOICES = ("choice_a", "choice_b", "choice_c", "choice_d")


def ask(path: str, prompt: str) -> Iterator[Question]:
    """Yield the questions about images; {question} and {options}."""
    columns = ("question_id", "question", *_CHOICES, "answer", "data_type", "image")
    for row in read_rows(path, columns, ("question_type_id",)):
        if row["data_type"] != "image":
            continue
        options = tuple(row[name] for name in _CHOICES)
        kind = row["question_type_id"]
        yield Question(
            id=str(row["question_id"]),
            prompt=fill(prompt, {"question": row["question"], "options": lettered(options)}),
            images=tuple(encoded(image) for image in row["image"]),
            reference=Reference(answers=(row["answer"].strip().upper(),), options=options),
            split=None if kind is None else f"type {kind}",
        )


def judge(question: Question, answer: str) -> Judged:
    """Judge by the first character."""
    letter = first_letter(answer, len(question.reference.options))
    return question.judged(float(letter == question.reference.answers[0]), letter)


SEEDBENCH = Benchmark(
    name="seedbench",
    data="hf://datasets/lmms-lab/SEED-Bench/data/test-*.parquet",
    prompt=f"{{question}}\n{{options}}\n{LETTER_ONLY}",
    max_new_tokens=16,
    ask=ask,
    judge=judge,
    summarise=mean_score("accuracy"),
)
