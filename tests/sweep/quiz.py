"""A small benchmark of numbers, and the sweep settings that ask it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.scoring.summary import mean_score
from schemas.benchmark import Benchmark, Judged, Question, Reference
from schemas.sweep import SweepSettings
from tests.images import encoded, noise
from tests.tiny import checkpoint


def ask(path: str, prompt: str) -> Iterator[Question]:
    """As many questions as the path says; after a slash, one in how many has a broken image. One in three is wrong."""
    count, _, broken = path.partition("/")
    for number in range(int(count)):
        yield Question(
            id=f"q{number}",
            prompt=prompt.format(question=f"What is {number}?"),
            images=(b"broken" if broken and number % int(broken) == 0 else encoded(noise(20, 30, seed=number)),),
            reference=Reference(answers=("never said" if number % 3 == 0 else f"{number}?",)),
        )


def judge(question: Question, answer: str) -> Judged:
    return question.judged(float(question.reference.answers[0] in answer), answer or None)


QUIZ = Benchmark(
    name="quiz",
    data="9",
    prompt="{question}",
    max_new_tokens=4,
    ask=ask,
    judge=judge,
    summarise=mean_score("right"),
)


def quiz_settings(output: Path | str, **changes: Any) -> SweepSettings:
    """The quiz, twice, asked of a tiny model."""
    given = {
        "output": str(output),
        "models": {"tiny": str(checkpoint())},
        "benchmarks": {"quiz": None, "long": {"benchmark": "quiz", "data": "20"}},
        "job": {"unit_rows": 4, "gpus": 0, "preprocess_workers": 1},
        "resamples": 200,
    }
    return SweepSettings.model_validate({**given, **changes})
