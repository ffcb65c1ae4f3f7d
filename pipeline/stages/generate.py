"""The generate stage: a table of samples becomes a table of answers, a work unit at a time.

A stage's table starts with its schema's columns (requests, samples, answers); the columns kept for the answers, named
`keep:<name>`, follow untouched.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Protocol

import numpy as np
import pyarrow as pa

from pipeline.preprocess.parsed import answer_columns, parse_texts, shape_of
from pipeline.sources.kept import beside, restore
from pipeline.sources.reader import KEEP
from pipeline.stages.engine_settings import sampling_of
from pipeline.stages.locks import ModeLock
from pipeline.stages.reuse import AnswerCache
from pipeline.stages.strips import join_answers, samples_of_strips
from schemas.answer import ANSWER_SCHEMA, Answer, answer_from, answers_to_table, logprobs_of
from schemas.engine import EngineStatistics, Sampling, StepWatch
from schemas.errors import Failure
from schemas.job import JobSettings
from schemas.sample import SAMPLE_SCHEMA, Prompt, Sample, table_to_samples

_STEPS = "answer:logprobs"  # the column in which log-probabilities come from the engine


class Engine(Protocol):
    """Answers every prompt of every sample, in their order, from any thread."""

    def generate(self, samples: Sequence[Sample]) -> Iterator[Answer]: ...

    def set_sampling(self, sampling: Sampling) -> None: ...  # from now on; never while somebody generates

    def statistics(self) -> EngineStatistics: ...


class Generate:
    """Turns samples into answers, one for every prompt, in order."""

    def __init__(self, settings: JobSettings, load_engine: Callable[[JobSettings], Engine]) -> None:
        self._engine = load_engine(settings)
        self._sampling = ModeLock(sampling_of(settings), self._engine.set_sampling)
        self._cache = AnswerCache() if settings.reuse_answers else None

    def sampling(self, settings: JobSettings) -> AbstractContextManager[None]:
        """Hold the engine for the sampling of these settings, whatever it was loaded for; wait for users of others."""
        return self._sampling.take(sampling_of(settings))

    def __call__(self, table: pa.Table) -> pa.Table:
        samples = table_to_samples(table)
        strips = [strip for sample in samples for strip in samples_of_strips(sample)]
        answers = self._answer(strips)
        asked = [(strip.id, prompt.id) for strip in strips for prompt in strip.prompts]
        if asked != [(answer.id, answer.prompt_id) for answer in answers]:
            raise RuntimeError(f"the engine gave {len(answers)} answers for {len(asked)} prompts, or in another order")
        return _answered(samples, list(join_answers(samples, answers)), table)

    def _answer(self, samples: list[Sample]) -> list[Answer]:
        if self._cache is None:
            return list(self._engine.generate(samples))
        return self._cache.answer(samples, self._sampling.current, self._engine.generate)

    def statistics(self) -> EngineStatistics:
        """Return what the engine has done since it was loaded."""
        statistics = self._engine.statistics()
        return statistics if self._cache is None else replace(statistics, num_reused=self._cache.num_reused)

    def watch_steps(self, watch: StepWatch) -> None:
        """Have a watch told of the engine's steps, of an engine that has any."""
        if (follow := getattr(self._engine, "watch_steps", None)) is not None:
            follow(watch)

    def num_slots(self) -> int | None:
        """Return how many sequences the engine generates at once; None where it does not say."""
        return getattr(getattr(self._engine, "shapes", None), "num_slots", None)

    def fail_rows(self, table: pa.Table, failure: Failure) -> pa.Table:
        """Return the answers of samples that all failed for one reason; a prompt that failed before keeps its own."""
        samples = table_to_samples(table)
        pairs = ((sample, prompt) for sample in samples for prompt in sample.asked)
        answers = [answer_from(sample, _with_failure(prompt, failure), None) for sample, prompt in pairs]
        return _answered(samples, answers, table)


def final_answers(table: pa.Table, settings: JobSettings | None = None) -> pa.Table:
    """Return the table as it is written: ANSWER_SCHEMA, then the kept columns with their own names and types, then what
    the answers say where they are parsed."""
    names = [name.removeprefix(KEEP) for name in table.column_names]
    assert names[: len(ANSWER_SCHEMA)] == ANSWER_SCHEMA.names
    answers = restore(table.rename_columns(names))
    steps, answers = answers[_STEPS], answers.drop_columns([_STEPS])
    if settings is None:
        return answers
    for name, type in answer_columns(settings):
        answers = answers.append_column(pa.field(name, type), _asked_column(name, answers, steps, settings))
    return answers


def _asked_column(name: str, answers: pa.Table, steps: pa.ChunkedArray, settings: JobSettings) -> pa.Array:
    """Return a column that answers have because of what a job asks."""
    match name:
        case "answer_id":  # all answers of a row are here, those to one prompt behind each other
            number = np.arange(answers.num_rows) % settings.num_answers + 1
            return pa.array(number, pa.int32())
        case "parsed":
            shape = shape_of(settings)
            assert shape is not None
            return parse_texts(answers["text"].to_pylist(), shape)
    return steps


def _with_failure(prompt: Prompt, failure: Failure) -> Prompt:
    return prompt if prompt.failure else Prompt(id=prompt.id, text=prompt.text, failure=failure)


def _answered(samples: list[Sample], answers: list[Answer], table: pa.Table) -> pa.Table:
    rows = [row for row, sample in enumerate(samples) for _ in sample.asked]
    told = answers_to_table(answers).append_column(_STEPS, logprobs_of(answers))
    return beside(told, table.drop_columns(SAMPLE_SCHEMA.names).take(pa.array(rows, pa.int64())))
