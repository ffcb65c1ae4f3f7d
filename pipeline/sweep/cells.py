"""Cells: every combination that a sweep asks for, each the settings of a job with a folder of its own."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pydantic import ValidationError

from pipeline.storage import filesystem as fs
from schemas.benchmark import Benchmark, Question
from schemas.errors import Refused
from schemas.job import KINDS, JobSettings
from schemas.setting_kinds import names_where
from schemas.sweep import CellName, SweepSettings
from schemas.wording import describe_settings, did_you_mean

_SAMPLING = names_where(KINDS, lambda kind: kind.decides == "sampling")
# What a model is loaded by, and where: not what rows are made of, nor how tokens are drawn.
_ENGINE = names_where(KINDS, lambda kind: kind.decides in ("engine", "machines"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Asking:
    """One benchmark asked with one prompt: the input that all models and settings share."""

    name: str  # of the benchmark in the sweep
    prompt: str  # its name in the sweep
    benchmark: Benchmark  # with that prompt
    data: str
    limit: int | None
    folder: str

    def questions(self) -> Iterator[Question]:
        """Yield the questions as they are asked."""
        return self.benchmark.read(self.data, self.limit)

    def origin(self) -> dict[str, Any]:
        """Return what the input is made from."""
        named = {"benchmark": self.benchmark.name, "data": self.data, "limit": self.limit}
        return {**named, "prompt": self.benchmark.prompt}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One row of the table."""

    name: CellName
    asking: Asking
    job: JobSettings

    def engine_key(self) -> str:
        """Return a key that is equal for cells that one load of the model answers."""
        return self.job.model_dump_json(include=set(_ENGINE))

    def sampling_key(self) -> str:
        """Return a key that is equal for cells whose tokens are drawn alike: an engine answers these at the same
        time."""
        return self.job.model_dump_json(include=set(_SAMPLING))


def cells_of(settings: SweepSettings, benchmarks: Sequence[Benchmark]) -> list[Cell]:
    """Return all cells, those of one engine next to each other, and of these those that are drawn alike; raise
    ValueError naming what is wrong."""
    askings = [one for name in settings.benchmarks for one in _askings(settings, name, benchmarks)]
    cells = [
        _cell(settings, CellName(model=model, benchmark=asking.name, prompt=asking.prompt, settings=variant), asking)
        for model in settings.models
        for variant in settings.settings
        for asking in askings
    ]
    engines = list(dict.fromkeys(cell.engine_key() for cell in cells))
    samplings = list(dict.fromkeys(cell.sampling_key() for cell in cells))
    return sorted(cells, key=lambda cell: (engines.index(cell.engine_key()), samplings.index(cell.sampling_key())))


def baseline_of(settings: SweepSettings, name: CellName) -> CellName | None:
    """Return the cell that this one is compared with; None where no baseline is named or the benchmark is not asked
    so."""
    if settings.baseline is None:
        return None
    model = settings.baseline.model or next(iter(settings.models))
    prompts = settings.prompts_of(name.benchmark)
    prompt = settings.baseline.prompt or next(iter(prompts))
    variant = settings.baseline.settings or next(iter(settings.settings))
    if prompt not in prompts:
        return None
    return CellName(model=model, benchmark=name.benchmark, prompt=prompt, settings=variant)


def _askings(settings: SweepSettings, name: str, benchmarks: Sequence[Benchmark]) -> Iterator[Asking]:
    choice = settings.benchmarks[name]
    known = {one.name: one for one in benchmarks}
    wanted = choice.benchmark or name
    if wanted not in known:
        raise Refused(f"benchmarks: {wanted!r} is none of {', '.join(known)}{did_you_mean(wanted, known)}")
    benchmark = known[wanted]
    for prompt, template in settings.prompts_of(name).items():
        yield Asking(
            name=name,
            prompt=prompt,
            benchmark=benchmark if template is None else replace(benchmark, prompt=template),
            data=choice.data or benchmark.data,
            limit=choice.limit or settings.limit,
            folder=fs.join(settings.output, "inputs", name, prompt),
        )


def _cell(settings: SweepSettings, name: CellName, asking: Asking) -> Cell:
    given: dict[str, Any] = {
        "max_new_tokens": asking.benchmark.max_new_tokens,
        **settings.job,
        **settings.benchmarks[name.benchmark].job,
        **settings.models[name.model],
        **settings.settings[name.settings],
        "input": (asking.folder,),
        "output": fs.join(settings.output, "cells", str(name)),
        "id_column": "id",
        "image_column": "images",
        "messages_column": "messages",
    }
    return Cell(name=name, asking=asking, job=_checked(str(name), given))


def _checked(name: str, given: Mapping[str, Any]) -> JobSettings:
    try:
        return JobSettings.model_validate(given)
    except ValidationError as error:
        raise Refused(f"cell {name}: {'; '.join(describe_settings(error))}") from error
