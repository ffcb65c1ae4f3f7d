"""Benchmark records: a question as it is asked, what answers it rightly, and the score of one answer."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice


@dataclass(frozen=True, slots=True, kw_only=True)
class NgramFrequencies:
    """In how many images' captions each n-gram occurs; CIDEr weighs n-grams by it."""

    num_images: int
    counts: Mapping[tuple[str, ...], int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """What counts as right: accepted or annotators' answers, captions, or the letter of the right option."""

    answers: tuple[str, ...]
    options: tuple[str, ...] = ()  # of a multiple choice, in the order asked; empty where the answer is free
    kind: str | None = None  # of question, where a benchmark scores some otherwise than others
    frequencies: NgramFrequencies | None = None  # of all references together, for captions

    def __post_init__(self) -> None:
        if not self.answers:
            raise ValueError("answers must have at least one answer, got none")


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One item as it is asked: the whole prompt, and its images encoded as the dataset has them, in order."""

    id: str  # unique in its benchmark
    prompt: str
    images: tuple[bytes, ...]
    reference: Reference
    split: str | None = None  # a part of the benchmark that has a number of its own
    cluster: str | None = None  # what a bootstrap draws together; None where the question stands alone

    def judged(self, score: float, parsed: str | None, counts: tuple[float, ...] = ()) -> "Judged":
        """The score of an answer to this question."""
        return Judged(id=self.id, score=score, parsed=parsed, split=self.split, cluster=self.cluster, counts=counts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """The score of one answer; `counts` are what a metric of the whole corpus adds up."""

    id: str
    score: float  # 0 to 1; CIDEr up to 10
    parsed: str | None  # what was taken for the answer; None: nothing could be, which is wrong and counted apart
    split: str | None = None
    cluster: str | None = None
    counts: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Benchmark:
    """A dataset, how it is asked and how it is scored; `dataclasses.replace(benchmark, prompt=...)` asks otherwise.

    `ask(path, prompt)` streams all questions. `judge(question, answer)` scores one answer; "" stands for one that
    failed and is wrong everywhere. `summarise` makes the numbers of any judged answers, the same one several times
    included as a bootstrap draws them, with the headline first.
    """

    name: str
    data: str  # where the questions are by default: a folder, a glob or a file, as hf://datasets/...
    prompt: str  # a template
    max_new_tokens: int  # that the published numbers were generated with
    ask: Callable[[str, str], Iterator[Question]]
    judge: Callable[[Question, str], Judged]
    summarise: Callable[[Sequence[Judged]], dict[str, float]]
    higher_is_better: bool = True

    def read(self, path: str | None = None, limit: int | None = None) -> Iterator[Question]:
        """The first `limit` questions, in the dataset's order; the images of a few rows are in memory at a time."""
        seen: set[str] = set()
        for question in islice(self.ask(path or self.data, self.prompt), limit):
            if question.id in seen:
                raise ValueError(f"{self.name}: question ids must be unique, got {question.id!r} twice")
            seen.add(question.id)
            yield question
