"""Plan of a sweep: its cells, inputs and run folders found to be in order, before anything is answered."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from pipeline.checkpoint import with_base
from pipeline.environment import cards_here
from pipeline.plan import Plan, plan_job
from pipeline.preflight import check_machine
from pipeline.preprocess.parts import ModelParts
from pipeline.run_folder.lock import hold
from pipeline.run_folder.mend import find_gone
from pipeline.run_folder.run import RunMismatch, begin_run, is_complete, read_manifest, read_run
from pipeline.stages.preprocess import Preprocess
from pipeline.sweep.cells import Cell, cells_of
from pipeline.sweep.inputs import is_made, write_input
from schemas.benchmark import Benchmark
from schemas.job import JobSettings
from schemas.sweep import SweepSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedCell:
    """A cell, the plan of its job, and whether that is done already."""

    cell: Cell
    plan: Plan
    model: dict[str, Any]  # what run.json says of it
    parts: ModelParts  # what its rows are preprocessed by
    complete: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepPlan:
    """A sweep found to be in order."""

    settings: SweepSettings
    cells: tuple[PlannedCell, ...]

    def engines(self) -> Iterator[tuple[PlannedCell, ...]]:
        """Yield the cells that are not complete, those of one engine together."""
        for _, cells in groupby(self.cells, key=lambda planned: planned.cell.engine_key()):
            if left := tuple(planned for planned in cells if not planned.complete):
                yield left

    def describe(self) -> str:
        """Return what a person reads before it starts: each cell with its rows, and what is complete."""
        width = max(len(str(one.cell.name)) for one in self.cells)
        lines = [
            f"{one.cell.name!s:{width}}  {one.plan.listing.num_rows:,} rows{'  complete' if one.complete else ''}"
            for one in self.cells
        ]
        left = [one for one in self.cells if not one.complete]
        rows = sum(one.plan.listing.num_rows for one in left)
        total = f"{len(self.cells)} cells, {len(self.cells) - len(left)} complete; {rows:,} rows to answer"
        return "\n".join([*lines, f"{total} with {len(list(self.engines()))} loaded engines"])


def plan_sweep(settings: SweepSettings, benchmarks: Sequence[Benchmark]) -> SweepPlan:
    """Write the inputs that are not there yet and check every cell; raise ValueError naming what is wrong."""
    cells = cells_of(settings, benchmarks)
    cards = cards_here()
    for cell in {(cell.engine_key(), cell.sampling_key()): cell for cell in cells}.values():
        check_machine(with_base(cell.job), cards)  # refuses here what the actors could only die of
    askings = list({cell.asking.folder: cell.asking for cell in cells}.values())
    if not all(is_made(asking) for asking in askings):
        with hold(settings.output):
            for asking in askings:
                write_input(asking)
    known = _Known()
    return SweepPlan(settings=settings, cells=tuple(_planned(cell, known) for cell in cells))


@dataclass(frozen=True, slots=True)
class _Known:
    """Holds what cells have in common: each model is looked at once, and each way of preparing rows tried once."""

    models: dict[tuple[str | None, ...], Plan] = field(default_factory=dict)
    parts: dict[tuple[object, ...], ModelParts] = field(default_factory=dict)
    stages: dict[JobSettings, Preprocess] = field(default_factory=dict)

    def stage(self, settings: JobSettings) -> Preprocess:
        """Return what prepares rows by these settings; raises Refused for a chat template that does not suit."""
        way = settings.model_copy(update={"input": (), "output": ""})
        if way not in self.stages:
            model = (settings.model, settings.revision, settings.chat_template, settings.image_tokens)
            self.stages[way] = Preprocess(settings, self.parts.get(model))
            self.parts[model] = self.stages[way].parts  # one for all: what is sent to workers has it once
        return self.stages[way]


def _planned(cell: Cell, known: _Known) -> PlannedCell:
    """Return the plan of a cell."""
    job = cell.job
    key = (job.model, job.revision, job.adapter, job.chat_template)
    if (of_model := known.models.get(key)) is not None:
        found = ("model", "revision", "adapter", "chat_template")
        job = job.model_copy(update={name: getattr(of_model.settings, name) for name in found})
        plan = plan_job("sweep", job, "", of_model.model)
    else:
        plan = known.models[key] = plan_job("sweep", job, "")
    stage = known.stage(plan.settings)
    description, folder = plan.describe(), plan.settings.output
    if read_run(folder) is not None:
        _check_run(plan, description)
    model, complete = stage.preprocessor.describe(), _is_whole(folder, description)
    return PlannedCell(cell=cell, plan=plan, model=model, parts=stage.parts, complete=complete)


def _is_whole(folder: str, description: dict[str, Any]) -> bool:
    """Return whether this very cell is complete and its answers are those that were written."""
    if not is_complete(folder, description):
        return False
    manifest = read_manifest(folder)
    return manifest is not None and not find_gone(folder, manifest)


def _check_run(plan: Plan, description: dict[str, Any]) -> None:
    """Refuse a folder that holds another run."""
    try:
        begin_run(plan.settings.output, description, plan.listing.files)
    except RunMismatch as error:
        differences = str(error).rsplit("\n", 1)[0]  # all but the advice, which is for a job
        raise RunMismatch(f"{differences}\nChoose a new output, or another name for what has changed.") from error
