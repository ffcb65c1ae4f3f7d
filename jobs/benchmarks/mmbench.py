"""MMBench, multiple choice asked in every order of its options: lmms-lab's MMBench, English, dev (4,329 rows).

Columns: index int or string (a rotation of question 241 is 1000241, 2000241, ...), question string, hint string,
answer string (a letter), A to D strings, category string (the splits), image {bytes, path}. "nan", a null and white
space are no text: such an option is not there, and those behind it keep their letters.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence

from jobs.benchmarks.prompts import LETTER_ONLY, fill
from jobs.benchmarks.rows import encoded, read_rows, truths
from pipeline.scoring.choice import inferred_letter, lettered_if_there
from pipeline.scoring.summary import mean
from schemas.benchmark import Benchmark, Judged, Numbers, Question, Reference, Summary

_ROTATIONS_FROM = 1_000_000
_OPTIONS = ("A", "B", "C", "D")


def ask(path: str, prompt: str) -> Iterator[Question]:
    """Yield all rows; {question}, {options} and {hint}. A question's rotations are one cluster."""
    columns = ("index", "question", "answer", "image", "category", "A", "B")
    for row in read_rows(path, columns, ("hint", "C", "D")):
        options = tuple(_text(row[letter]) for letter in _OPTIONS)
        fields = {"question": row["question"], "options": lettered_if_there(options), "hint": _text(row["hint"])}
        answers = truths([answer] if (answer := _text(row["answer"])) else None, row["index"])
        yield Question(
            id=str(row["index"]),
            prompt=fill(prompt, fields),
            images=(encoded(row["image"]),),
            reference=Reference(answers=answers, options=options),
            split=row["category"],
            cluster=str(int(row["index"]) % _ROTATIONS_FROM),
        )


def judge(question: Question, answer: str) -> Judged:
    """Judge by rule alone: MMBench's server asks a language model where the rule finds nothing."""
    letter = inferred_letter(answer, question.reference.options)
    return question.judged(float(letter == question.reference.answers[0]), letter)


def _rotations(group: Sequence[Judged]) -> list[float]:
    """Return each question's rotations; one that is there twice has every rotation twice, and weighs twice."""
    rotations: dict[str, list[float]] = defaultdict(list)
    for one in group:
        rotations[one.id].append(one.score)
    weight = mean([len(scores) for scores in rotations.values()])
    scores = [one.score for one in group]
    return [weight, weight * min(scores), sum(scores)]


def _accuracies(rows: Numbers, questions: Numbers, right: Numbers, scores: Numbers) -> dict[str, Numbers]:
    """Return circular accuracy, where a question is right in every order or wrong, and that of single rows."""
    return {"circular accuracy": right / questions, "accuracy": scores / rows}


def _text(cell: str | None) -> str:
    return "" if cell is None or cell == "nan" or not cell.strip() else cell


MMBENCH = Benchmark(
    name="mmbench",
    data="hf://datasets/lmms-lab/MMBench/en/dev-*.parquet",
    prompt=f"{{hint}}\n{{question}}\n{{options}}\n{LETTER_ONLY}",
    max_new_tokens=1024,
    ask=ask,
    judge=judge,
    summarise=Summary(add=_rotations, numbers=_accuracies, split_numbers=_accuracies),
)
