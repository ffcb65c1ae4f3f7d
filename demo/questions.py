"""Prompts and the one true answer to each, for pictures of shapes, of text, of both and of neither."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from demo.scenes import COLOURS, PLACES, SHAPES, Mark, caption, with_article

NO_TEXT = "no text"
# The first wording of each is the one that scores are measured with.
READ = (
    "What does the text say?",
    "What does the text say",
    "Read the text.",
    "What is written here?",
    "Transcribe the text in the image.",
    "What text is in the image?",
    "Extract all text from this image.",
)
DESCRIBE = (
    "Describe the image.",
    "Describe the image in more details.",
    "Describe this image.",
    "What is shown in this image?",
    "What is in the picture?",
    "Write a caption for this image.",
)
COUNT = ("How many shapes are there?", "How many shapes are in the image?", "Count the shapes.")
COLOUR_OF = ("What colour is the {}?", "What color is the {}?", "Which colour does the {} have?")
IS_THERE = ("Is there {}?", "Is there {} in the image?", "Can you see {}?")
WHERE = ("Where is the {}?", "Where is the {} in the image?")
IS_TEXT = ("Is there any text?", "Does the image contain text?")
LINES = ("How many lines of text are there?", "How many lines does the text have?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """All that a picture shows."""

    marks: tuple[Mark, ...] = ()
    lines: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A prompt, its true answer, and the kind it is counted under."""

    kind: str
    prompt: str
    truth: str


Asker = Callable[[random.Random, Content, Callable[[Sequence[str]], str]], Question | None]


def ask(rng: random.Random, content: Content, *, reword: bool) -> list[Question]:
    """One question of every kind that this content has an answer to, the reading and the description first."""

    def wording(wordings: Sequence[str]) -> str:
        return rng.choice(wordings) if reword else wordings[0]

    asked = [asker(rng, content, wording) for asker in (_read, _describe, *_SMALL)]
    return [question for question in asked if question]


def read_truth(content: Content) -> str:
    """The lines from top to bottom, or that there are none."""
    return "\n".join(content.lines) or NO_TEXT


def describe_truth(content: Content) -> str:
    """Shapes first, then how many lines of text and the first word."""
    said = [caption(content.marks)] if content.marks else []
    if content.lines:
        count = len(content.lines)
        start = content.lines[0].split(" ")[0]
        said.append(f"Text in {count} {'line' if count == 1 else 'lines'}, starting with: {start}")
    return " ".join(said) or "An empty picture."


def _read(rng: random.Random, content: Content, wording: Callable[[Sequence[str]], str]) -> Question:
    kind = "read" if content.lines else "no text"
    return Question(kind=kind, prompt=wording(READ), truth=read_truth(content))


def _describe(rng: random.Random, content: Content, wording: Callable[[Sequence[str]], str]) -> Question:
    kind = "caption" if content.marks else "describe"
    return Question(kind=kind, prompt=wording(DESCRIBE), truth=describe_truth(content))


def _count(rng: random.Random, content: Content, wording: Callable[[Sequence[str]], str]) -> Question:
    return Question(kind="count", prompt=wording(COUNT), truth=str(len(content.marks)))


def _colour(rng: random.Random, content: Content, wording: Callable[[Sequence[str]], str]) -> Question | None:
    shapes = [mark.shape for mark in content.marks]
    single = [mark for mark in content.marks if shapes.count(mark.shape) == 1]
    if not single:
        return None
    mark = rng.choice(single)
    return Question(kind="colour", prompt=wording(COLOUR_OF).format(mark.shape), truth=mark.colour)


def _is_there(rng: random.Random, content: Content, wording: Callable[[Sequence[str]], str]) -> Question | None:
    """As often yes as no; most of the absent shapes share shape or colour with one that is there."""
    if not content.marks:
        return None
    mark = rng.choice(content.marks)
    if rng.random() < 0.5:
        return Question(kind="yes/no", prompt=wording(IS_THERE).format(with_article(mark)), truth="yes")
    present = {str(mark) for mark in content.marks}
    shape = mark.shape if rng.random() < 0.4 else rng.choice(SHAPES)
    colour = mark.colour if rng.random() < 0.4 else rng.choice(list(COLOURS))
    absent = [Mark(shape=shape, colour=c, place=0) for c in (colour, *COLOURS) if f"{c} {shape}" not in present]
    return Question(kind="yes/no", prompt=wording(IS_THERE).format(with_article(absent[0])), truth="no")


def _where(rng: random.Random, content: Content, wording: Callable[[Sequence[str]], str]) -> Question | None:
    if not content.marks:
        return None
    mark = rng.choice(content.marks)
    return Question(kind="place", prompt=wording(WHERE).format(mark), truth=PLACES[mark.place])


def _is_text(rng: random.Random, content: Content, wording: Callable[[Sequence[str]], str]) -> Question:
    return Question(kind="any text", prompt=wording(IS_TEXT), truth="yes" if content.lines else "no")


def _lines(rng: random.Random, content: Content, wording: Callable[[Sequence[str]], str]) -> Question:
    return Question(kind="lines", prompt=wording(LINES), truth=str(len(content.lines)))


_SMALL: tuple[Asker, ...] = (_count, _colour, _is_there, _where, _is_text, _lines)
