"""One job from its settings to a complete run folder: check everything, begin, answer what is not done, finish."""

import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

from pipeline import dataflow
from pipeline.checkpoint import pin
from pipeline.columns import ColumnChoices
from pipeline.preprocess.facts import ModelFacts
from pipeline.preprocess.template import choose_template
from pipeline.progress import Progress
from pipeline.reader import unit_reader
from pipeline.run import Counts, begin_run, done_units, finish_run, read_manifest
from pipeline.sources import Listing, list_input
from pipeline.stages import Engine, Preprocess, engine_settings
from schemas.job import PLACEMENT, JobSettings, columns_in

ROWS_BEFORE_BUDGET = 100


class ErrorBudgetSpent(RuntimeError):
    """More rows failed than --max-error-rate allows; what is done stays and a rerun goes on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A job found to be in order: its settings with nothing left open, its input, and what a resume compares."""

    job: str
    settings: JobSettings
    listing: Listing
    model: str  # commit or hash of the checkpoint
    facts: ModelFacts

    @property
    def num_prompts(self) -> int:
        """Questions asked of every row."""
        return max(1, len(self.settings.prompt))

    def identity(self) -> dict[str, Any]:
        """What two runs share when one may continue the other."""
        settings = {k: v for k, v in self.settings.model_dump(mode="json").items() if k not in PLACEMENT}
        return {
            "job": self.job,
            **settings,
            "model_hash": self.model,
            "input_hash": self.listing.fingerprint(),
            "input_rows": self.listing.num_rows,
            "unit_rows": self.listing.unit_rows,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """The last line of stdout. `rows` are answer rows; `images_per_s` is None where this call answered nothing."""

    rows: int
    ok: int
    errors: int
    images_per_s: float | None
    output: str


def plan_job(job: str, settings: JobSettings, default_prompt: str) -> Plan:
    """Look at the input and the model, fill what was left open; raises ValueError naming what is wrong."""
    choices = ColumnChoices(
        image=settings.image_column,
        id=settings.id_column,
        prompt=settings.prompt_column,
        messages=settings.messages_column,
        keep=settings.keep,
        own_prompts=bool(settings.prompt),
        values=tuple(dict.fromkeys(name for text in settings.prompt for name in columns_in(text))),
    )
    listing = list_input(settings.input, choices, settings.limit, settings.unit_rows)
    if not settings.prompt and listing.columns.prompt is None and listing.columns.messages is None:
        settings = settings.model_copy(update={"prompt": (default_prompt,)})
    engine_settings(settings, on_gpu=False)  # refuses here what the actors could only die of
    model = pin(settings.model, settings.revision)
    facts = Preprocess(settings).preprocessor.facts  # refuses a chat template that does not suit the model
    template = choose_template(settings.chat_template, facts.text)  # from here on nothing is "auto"
    settings = settings.model_copy(update={"chat_template": template})
    return Plan(job=job, settings=settings, listing=listing, model=model, facts=facts)


def run_job(plan: Plan, load_engine: Callable[[JobSettings], Engine]) -> Summary:
    """Answer every row that has no answer yet. Raises RunMismatch, ErrorBudgetSpent."""
    began = time.monotonic()
    folder = plan.settings.output
    settings = plan.settings.model_dump(mode="json")
    begin_run(folder, {"identity": plan.identity(), "settings": settings, "model": asdict(plan.facts), **_versions()})
    if (manifest := read_manifest(folder)) is not None:
        _say(f"already complete: {manifest['rows']:,} answers in {folder}")
        return _summary(manifest, folder, None)
    done = done_units(folder)
    todo = [unit for unit in range(plan.listing.num_units) if unit not in done]
    if done:
        _say(f"resuming: {len(done):,} of {plan.listing.num_units:,} units are done")
    progress = Progress(total_rows=_rows_of(plan.listing, todo) * plan.num_prompts)
    if todo:
        _answer_units(plan, todo, load_engine, progress)
    manifest = finish_run(folder, plan.listing.num_units, {"seconds": round(time.monotonic() - began, 3)})
    pace = progress.rows_per_s()
    return _summary(manifest, folder, pace and pace / plan.num_prompts)


def _answer_units(
    plan: Plan, todo: list[int], load_engine: Callable[[JobSettings], Engine], progress: Progress
) -> None:
    with dataflow.on_cluster():
        placement = dataflow.place(plan.settings)
        _say(
            f"{progress.total_rows:,} answers to give in {len(todo):,} units; "
            f"{placement.preprocess_workers} preprocessing actors, {placement.gpus or 'no'} GPUs; loading the model"
        )
        for counts in dataflow.run_units(todo, unit_reader(plan.listing), plan.settings, load_engine, placement):
            progress.add(counts)
            _check_budget(progress.done, plan.settings.max_error_rate)
    progress.show(end="\n")


def _rows_of(listing: Listing, units: list[int]) -> int:
    rows = len(units) * listing.unit_rows
    last_is_short = listing.num_units * listing.unit_rows - listing.num_rows
    return rows - (last_is_short if units and units[-1] == listing.num_units - 1 else 0)


def _check_budget(done: Counts, max_error_rate: float) -> None:
    if done.rows < ROWS_BEFORE_BUDGET or done.errors <= max_error_rate * done.rows:
        return
    types = ", ".join(f"{rows} {stage}/{kind}" for stage, kind, rows in done.by_type)
    raise ErrorBudgetSpent(
        f"{done.errors} of {done.rows} answers failed, more than --max-error-rate {max_error_rate:g} allows: {types}. "
        "What is done stays; run the same command again to go on, with a higher rate if these errors are expected."
    )


def _summary(manifest: dict[str, Any], folder: str, images_per_s: float | None) -> Summary:
    return Summary(
        rows=manifest["rows"],
        ok=manifest["ok"],
        errors=manifest["errors"],
        images_per_s=images_per_s and round(images_per_s, 3),
        output=folder,
    )


def _versions() -> dict[str, Any]:
    packages = ("torch", "transformers", "ray", "pyarrow", "pillow")
    return {"versions": {"python": sys.version.split()[0], **{name: version(name) for name in packages}}}


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")
