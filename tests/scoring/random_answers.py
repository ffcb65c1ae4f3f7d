"""A thousand random answers for each metric, the same on every machine."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

NUM_ANSWERS = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """One answer and what it is compared with: accepted answers, annotators' answers, options or captions."""

    answer: str
    truths: tuple[str, ...]


def annotated() -> Iterator[Pair]:
    """Ten annotators of whom some agree, over words that normalisation changes."""
    draw = random.Random(1)
    words = _words(
        "yes no a the Two three none dont don't couldntve somebody'd 1,000 3.5 U.S. blue? red, it's x-ray a/b"
    )
    words += [*_words("(left) 12 % one ten youre cat dog - 5 . 's let's"), "\n", "\t"]
    for _ in range(NUM_ANSWERS):
        said = [_text(draw, words, 2) for _ in range(draw.choice([1, 3]))]
        yield Pair(answer=draw.choice([*said, _text(draw, words, 4)]), truths=tuple(draw.choices(said, k=10)))


def short_texts() -> Iterator[Pair]:
    """Few letters in both cases, so that distances of exactly one half are common."""
    draw = random.Random(2)
    for _ in range(NUM_ANSWERS):
        some = ["".join(draw.choices("abcAB1", k=draw.randint(1, 6))) for _ in range(draw.randint(2, 4))]
        yield Pair(answer=some[0], truths=tuple(some[1:]))


def numbers() -> Iterator[Pair]:
    draw = random.Random(3)
    some = _words("1 2 100 105 106 94.99 95 12% 12 0 0.0 1e2 1,000 yes Yes nan inf -3 0.12") + ["3 m", " 3 "]
    for _ in range(NUM_ANSWERS):
        yield Pair(answer=draw.choice(some), truths=(draw.choice(some),))


def choices() -> Iterator[Pair]:
    """Answers about two to four options, with letters in every disguise."""
    draw = random.Random(4)
    words = _words("A B (B) (C) D. the answer is cat Blue C, A) because E Answer: **B** red dog")
    for _ in range(NUM_ANSWERS):
        options = ("cat", "red dog", "blue", "the answer")[: draw.randint(2, 4)]
        yield Pair(answer=_text(draw, words, 8), truths=options)


def open_questions() -> Iterator[Pair]:
    draw = random.Random(5)
    said = ["the answer is", "so", "3.14", "1,000", "x", "= 5", "12", "thus", "result", "Blue", "final answer", "1e5"]
    said += ["is", ".", "a", "\n", "-3", "could be red", ":", "answer ", "is "]
    truths = ["3.14", "5", "x", "blue", "1000", "red", "-3", "100000", "a", "12.00"]
    for _ in range(NUM_ANSWERS):
        yield Pair(answer=_text(draw, said, 7), truths=tuple(draw.choices(truths, k=draw.randint(1, 2))))


def yes_or_no() -> Iterator[Pair]:
    draw = random.Random(6)
    words = ["Yes", "No", "no,", "not", "yes.", "No.", "there", "is", "NO", "cannot", "nothing", "a", "dog."]
    for _ in range(NUM_ANSWERS):
        yield Pair(answer=_text(draw, words, 5), truths=(draw.choice(["yes", "no"]),))


def captions() -> list[Pair]:
    """Word lists that overlap much; answers may be empty."""
    draw = random.Random(0)
    words = _words("a man dog cat on the table red big with two sitting in front of park and is")
    return [
        Pair(
            answer=" ".join(draw.choices(words, k=draw.randint(0, 12))),
            truths=tuple(" ".join(draw.choices(words, k=draw.randint(1, 12))) for _ in range(draw.randint(1, 5))),
        )
        for _ in range(NUM_ANSWERS)
    ]


def _words(text: str) -> list[str]:
    return text.split()


def _text(draw: random.Random, words: Sequence[str], most: int) -> str:
    return " ".join(draw.choices(words, k=draw.randint(1, most)))
