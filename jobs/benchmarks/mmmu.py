"""MMMU, college questions with up to seven images: lmms-lab's MMMU, validation (900 questions).

Columns: id string (validation_Art_Theory_1: the subject is the split), question string with <image 1>, options string
(a Python list), answer string (a letter, or what is accepted), question_type string (multiple-choice, open),
image_1 to image_7 {bytes, path}. The images come before the text, which keeps its <image 1>.
"""

import ast
import re
from collections.abc import Iterator
from typing import Any

from jobs.benchmarks.prompts import LETTER_ONLY, SHORT_ANSWER, fill
from jobs.benchmarks.rows import encoded, read_rows
from pipeline.scoring.choice import lettered, mmmu_letter
from pipeline.scoring.mmmu import open_match
from pipeline.scoring.summary import mean_score
from schemas.benchmark import Benchmark, Judged, Question, Reference
from schemas.errors import Refused

_COLUMNS = ("id", "question", "options", "answer", "question_type")
_IMAGES = tuple(f"image_{number}" for number in range(1, 8))


def ask(path: str, prompt: str) -> Iterator[Question]:
    """Yield all questions; {question}, {options}, and {instruction}: a letter, or few words where the question is
    open."""
    for row in read_rows(path, (*_COLUMNS, "image_1"), _IMAGES[1:]):
        choices = row["question_type"] == "multiple-choice"
        options = _options(row["options"], row["id"]) if choices else ()
        instruction = LETTER_ONLY if choices else SHORT_ANSWER
        fields = {"question": row["question"], "options": lettered(options), "instruction": instruction}
        yield Question(
            id=row["id"],
            prompt=fill(prompt, fields),
            images=_images_of(row, row["question"] + lettered(options)),
            reference=Reference(answers=_accepted(row["answer"]), options=options),
            split=row["id"].split("_", 1)[-1].rsplit("_", 1)[0],
        )


def judge(question: Question, answer: str) -> Judged:
    """Judge by MMMU's own parser, but a letter that it would draw by lot is wrong."""
    truth = question.reference
    if not truth.options:
        return question.marked(answer, float(open_match(answer, truth.answers)), answer.strip() or None)
    letter = mmmu_letter(answer, truth.options)
    return question.judged(float(letter in truth.answers), letter)


def _images_of(row: dict[str, Any], text: str) -> tuple[bytes, ...]:
    """Return the images that the text names, each once, by number."""
    numbers = sorted({int(number) for number in re.findall(r"<image (\d)>", text)})
    return tuple(encoded(row.get(f"image_{number}")) for number in numbers)


def _options(text: str, id: str) -> tuple[str, ...]:
    options = _listed(text)
    if not options:
        raise Refused(f"options of {id} must be a Python list of at least one, got {text!r}")
    return options


def _accepted(answer: str) -> tuple[str, ...]:
    """Return the accepted answers: an open question may have several, as a Python list; anything else is one."""
    return _listed(answer) or (answer,)


def _listed(text: str) -> tuple[str, ...]:
    """Return the texts of a Python list, none where it is not one."""
    try:
        found = ast.literal_eval(text) if text.startswith("[") else None
    except (ValueError, SyntaxError):
        return ()
    return tuple(map(str, found)) if isinstance(found, list) else ()


MMMU = Benchmark(
    name="mmmu",
    data="hf://datasets/lmms-lab/MMMU/data/validation-*.parquet",
    prompt="{question}\n{options}\n\n{instruction}",
    max_new_tokens=128,
    ask=ask,
    judge=judge,
    summarise=mean_score("accuracy"),
)
