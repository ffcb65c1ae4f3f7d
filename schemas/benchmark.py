"""Benchmark records: a question as it is asked, what answers it rightly, and the score of one answer or of many."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from schemas.errors import Refused

Numbers: TypeAlias = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class NgramFrequencies:
    """In how many images' captions each n-gram occurs; CIDEr weighs n-grams by it."""

    num_images: int
    counts: Mapping[tuple[str, ...], int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """The right answer: accepted or annotators' answers, captions, or the letter of the right option."""

    answers: tuple[str, ...]
    options: tuple[str, ...] = ()  # of a multiple choice, in the order asked; empty where the answer is free
    kind: str | None = None  # of question, where a benchmark scores some otherwise than others
    frequencies: NgramFrequencies | None = None  # of all references together, for captions

    def __post_init__(self) -> None:
        if not self.answers:
            raise Refused("answers must have at least one answer, got none")


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
        """Return the score of an answer to this question."""
        return Judged(id=self.id, score=score, parsed=parsed, split=self.split, cluster=self.cluster, counts=counts)

    def marked(self, answer: str, score: float, parsed: str | None, beside: tuple[float, ...] = ()) -> "Judged":
        """Return the score of an answer, and what other rules give beside; of one that says nothing each is 0.

        It is wrong even where the truth, brought to what is compared, is nothing too.
        """
        if not answer.strip():
            return self.judged(0.0, None, (0.0,) * len(beside))
        return self.judged(score, parsed, beside)


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """The score of one answer; `counts` are what a metric of the whole corpus adds up."""

    id: str
    score: float  # 0 to 1; CIDEr up to 10
    parsed: str | None  # what was taken for the answer; None: nothing could be, which is wrong and counted apart
    split: str | None = None
    cluster: str | None = None
    counts: tuple[float, ...] = ()


def groups_of(judged: Sequence[Judged]) -> list[list[int]]:
    """Return the indices of answers that belong together, in the order of their first; a question alone is a group."""
    clusters: dict[tuple[bool, str], list[int]] = defaultdict(list)
    for index, one in enumerate(judged):
        clusters[one.cluster is None, one.id if one.cluster is None else one.cluster].append(index)
    return list(clusters.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """Makes the numbers of judged answers from sums over their groups, so that a bootstrap need only weigh groups.

    `add(group)` is what one group of answers adds. `numbers(rows, *sums)` takes the number of answers and those sums,
    each an array with a value a draw, and names what they come to, the headline first; NaN is what cannot be said.
    `split_numbers` does so for every split, after whose name its own are called.
    """

    add: Callable[[Sequence[Judged]], Sequence[float]]
    numbers: Callable[..., dict[str, Numbers]]
    split_numbers: Callable[..., dict[str, Numbers]] | None = None

    def __call__(self, judged: Sequence[Judged]) -> dict[str, float]:
        """Return the numbers of these answers, the same one several times included; there are none of nothing."""
        if not judged:
            raise Refused("a summary needs at least one judged answer, got none")
        return self.total(self.sums(judged, groups_of(judged)))

    def total(self, sums: Mapping[str | None, Numbers]) -> dict[str, float]:
        """Return the numbers of all groups, each once."""
        found = self.weigh(sums, np.ones((sums[None].shape[1], 1)))
        return {name: float(value) for name, (value,) in found.items() if not np.isnan(value)}

    def sums(self, judged: Sequence[Judged], groups: Sequence[Sequence[int]]) -> dict[str | None, Numbers]:
        """Return what every group adds, (1 + sums, groups), its number of answers first: in all, then in each split."""
        together = [[judged[index] for index in group] for group in groups]
        found: dict[str | None, Numbers] = {None: self._columns(together)}
        splits = [{one.split for one in group} for group in together]
        for split in sorted({split for there in splits for split in there if split} if self.split_numbers else ()):
            own = found[split] = np.zeros_like(found[None])
            whole = [index for index, there in enumerate(splits) if there == {split}]
            own[:, whole] = found[None][:, whole]
            for index in (index for index, there in enumerate(splits) if split in there and len(there) > 1):
                own[:, [index]] = self._columns([[one for one in together[index] if one.split == split]])
        return found

    def weigh(self, sums: Mapping[str | None, Numbers], weights: Numbers) -> dict[str, Numbers]:
        """Return the numbers of draws that have each group so many times, (groups, draws); NaN where no answer was
        drawn."""
        found = {}
        for split, own in sums.items():
            rows, *totals = own @ weights
            make = self.numbers if split is None or self.split_numbers is None else self.split_numbers
            with np.errstate(divide="ignore", invalid="ignore"):
                numbers = make(rows, *totals)
            for name, values in numbers.items():
                found[name if split is None else f"{name} {split}"] = np.where(rows > 0, values, np.nan)
        return found

    def _columns(self, groups: Sequence[Sequence[Judged]]) -> Numbers:
        return np.ascontiguousarray(np.array([[float(len(group)), *self.add(group)] for group in groups]).T)


@dataclass(frozen=True, slots=True, kw_only=True)
class Benchmark:
    """A dataset, how it is asked and how it is scored; `dataclasses.replace(benchmark, prompt=...)` asks otherwise.

    `ask(path, prompt)` streams all questions. `judge(question, answer)` scores one answer; "" stands for one that
    failed and is wrong everywhere. `summarise(judged)` gives the numbers of any judged answers, the headline first.
    """

    name: str
    data: str  # where the questions are by default: a folder, a glob or a file, as hf://datasets/...
    prompt: str  # a template
    max_new_tokens: int  # that the published numbers were generated with
    ask: Callable[[str, str], Iterator[Question]]
    judge: Callable[[Question, str], Judged]
    summarise: Summary
    higher_is_better: bool = True

    def read(self, path: str | None = None, limit: int | None = None) -> Iterator[Question]:
        """Yield the first `limit` questions, in the dataset's order; no more than two row groups' images are in
        memory."""
        seen: set[str] = set()
        for question in islice(self.ask(path or self.data, self.prompt), limit):
            if question.id in seen:
                raise Refused(f"{self.name}: question ids must be unique, got {question.id!r} twice")
            seen.add(question.id)
            yield question
