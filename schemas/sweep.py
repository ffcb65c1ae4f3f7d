"""The settings of a sweep: models x benchmarks x prompts x settings, as named in its YAML file."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from schemas.errors import Refused
from schemas.job import KINDS, JobSettings
from schemas.setting_kinds import names_where
from schemas.wording import did_you_mean

# Settings of a job that follow from the sweep's own.
OWNED = names_where(KINDS, lambda kind: kind.of_sweep)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class BenchmarkChoice(BaseModel):
    """One benchmark of a sweep; what is left out is the benchmark's or the sweep's own."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    benchmark: str | None = Field(None, description="Which benchmark, where its name in the sweep is another.")
    data: str | None = Field(None, description="Where the questions are.")
    limit: int | None = Field(None, ge=1, description="Take the first N questions only.")
    prompts: dict[str, str | None] | None = Field(None, min_length=1, description="Instead of the sweep's prompts.")
    job: dict[str, Any] = Field({}, description="Settings of a job for this benchmark, as max_new_tokens.")


class Baseline(BaseModel):
    """The cell that the others of a benchmark are compared with; what is left out is the first named in the sweep."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str | None = None
    prompt: str | None = None
    settings: str | None = None


class SweepSettings(BaseModel):
    """Settings of a sweep. A cell is one model asked one benchmark with one prompt under some settings."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    output: str = Field(min_length=1, description="The sweep's folder, local or s3://, gs://.")
    models: dict[str, dict[str, Any]] = Field(min_length=1, description="By name: settings of a job, model among them.")
    benchmarks: dict[str, BenchmarkChoice] = Field(min_length=1)
    prompts: dict[str, str | None] = Field({"own": None}, min_length=1, description="By name: a template, or null.")
    settings: dict[str, dict[str, Any]] = Field(
        {"default": {}}, min_length=1, description="By name: settings of a job."
    )
    job: dict[str, Any] = Field({}, description="Settings of a job for every cell.")
    baseline: Baseline | None = None
    limit: int | None = Field(None, ge=1, description="Take the first N questions of each benchmark only.")
    minutes: float | None = Field(None, gt=0, description="Stop the sweep after these; the next call goes on.")
    cell_minutes: float | None = Field(None, gt=0, description="Stop a cell after these; the next call goes on.")
    resamples: int = Field(1000, ge=100, description="Draws of the bootstrap.")
    seed: int = Field(0, ge=0, description="Of the bootstrap.")

    @model_validator(mode="before")
    @classmethod
    def _take_short_forms(cls, given: object) -> object:
        """Expand a model that is its name alone, and benchmarks that are a list of names."""
        if not isinstance(given, Mapping):
            return given
        models, benchmarks = given.get("models"), given.get("benchmarks")
        if isinstance(models, Mapping):
            models = {name: {"model": one} if isinstance(one, str) else one for name, one in models.items()}
        if isinstance(benchmarks, list):
            benchmarks = dict.fromkeys(benchmarks)
        if isinstance(benchmarks, Mapping):
            benchmarks = {name: {} if one is None else one for name, one in benchmarks.items()}
        long = {"models": models, "benchmarks": benchmarks}
        return {**given, **{name: value for name, value in long.items() if value is not None}}

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        for what, name in self._names():
            if not _NAME.fullmatch(name):
                raise Refused(f"{what}: a name must be letters, digits, '.', '_' and '-', got {name!r}")
        for what, given in self._jobs():
            check_job(what, given)
        if self.baseline:
            self._check_baseline(self.baseline)
        return self

    def prompts_of(self, benchmark: str) -> dict[str, str | None]:
        """Return the prompts that a benchmark is asked with."""
        return self.benchmarks[benchmark].prompts or self.prompts

    def _names(self) -> Iterator[tuple[str, str]]:
        for what, names in (("models", self.models), ("benchmarks", self.benchmarks), ("settings", self.settings)):
            yield from ((what, name) for name in names)
        for benchmark in self.benchmarks:
            yield from (("prompts", name) for name in self.prompts_of(benchmark))

    def _jobs(self) -> Iterator[tuple[str, dict[str, Any]]]:
        yield "job", self.job
        for what, group in (("models", self.models), ("settings", self.settings)):
            yield from ((f"{what}.{name}", given) for name, given in group.items())
        yield from ((f"benchmarks.{name}.job", choice.job) for name, choice in self.benchmarks.items())

    def _check_baseline(self, baseline: Baseline) -> None:
        prompts = {name for benchmark in self.benchmarks for name in self.prompts_of(benchmark)}
        known = {"model": set(self.models), "prompt": prompts, "settings": set(self.settings)}
        for field, names in known.items():
            name = getattr(baseline, field)
            if name is not None and name not in names:
                raise Refused(f"baseline.{field} must be one of {', '.join(sorted(names))}, got {name!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class CellName:
    """Name of a cell: those of its four parts in the sweep."""

    model: str
    benchmark: str
    prompt: str
    settings: str

    def __str__(self) -> str:
        return f"{self.model}/{self.benchmark}/{self.prompt}/{self.settings}"


def check_job(what: str, given: Mapping[str, Any]) -> None:
    """Refuse what is no setting of a job, or one that the sweep sets itself."""
    for name in given:
        if name in OWNED:
            raise Refused(f"{what}: {name} follows from the sweep and cannot be set")
        if name not in JobSettings.model_fields:
            near = did_you_mean(name, set(JobSettings.model_fields) - OWNED)
            raise Refused(f"{what}: {name} is no setting of a job{near}")
