"""Plan: a job found to be in order, before torch or Ray are loaded; and the answer to `is it done already`."""

import hashlib
import os
import sys
import time
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.checkpoint import (
    Pin,
    at_its_commit,
    at_their_folders,
    check_revision,
    describe_generation,
    hash_code,
    pin,
    prove,
    with_adapters_template,
    with_base,
)
from pipeline.environment import version_of
from pipeline.preprocess.facts import read_facts, with_image_tokens
from pipeline.preprocess.forms import check_job_form
from pipeline.preprocess.parsed import answer_columns
from pipeline.preprocess.template import choose_template
from pipeline.run_folder.events import Events, last_event
from pipeline.run_folder.mend import find_gone, is_retried
from pipeline.run_folder.merge import Units
from pipeline.run_folder.run import is_complete, read_manifest, read_run
from pipeline.run_folder.units import as_written
from pipeline.scores import Scores, score_run, scores_in
from pipeline.scoring.packages import check_scoring
from pipeline.sources.columns import ColumnChoices
from pipeline.sources.kept import written_schema
from pipeline.sources.listing import Listing, list_input
from pipeline.sources.versions import at_versions
from pipeline.storage import filesystem as fs
from pipeline.weights.hub import locate
from schemas.errors import Refused
from schemas.job import PLACEMENT, JobSettings, columns_in

_UNIT_OF_PAGES = 8  # rows of a unit: a page in strips is some ten times as large as a picture


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A job found to be in order: its settings with nothing left open, its input, and what a resume compares."""

    job: str
    settings: JobSettings
    listing: Listing
    model: Pin
    answer_schema: pa.Schema  # the columns of every answer: ours, then those that are kept

    @property
    def num_prompts(self) -> int:
        """Return the number of answers that every row has: of all its questions, and of all draws of each."""
        return self.settings.num_prompts

    def identity(self) -> dict[str, Any]:
        """Return what two runs share when one may continue the other."""
        settings = {k: v for k, v in self.settings.model_dump(mode="json").items() if k not in PLACEMENT}
        return {
            "job": self.job,
            **settings,
            **{name: _without_folder(settings[name]) for name in ("model", "adapter")},
            "prompt_ids": _named_prompts(self.settings),
            "model_hash": self.model.hash,
            "model_files": self.model.files,
            "code": hash_code(),
            "input_hash": self.listing.fingerprint(),
            "input_layout": _layout(self.listing),
            "input_rows": self.listing.num_input_rows,
            "unit_rows": self.listing.unit_rows,
        }

    def describe(self) -> dict[str, Any]:
        """Return the content of run.json."""
        return {"identity": self.identity(), "settings": self.settings.model_dump(mode="json"), **_versions()}

    def rows_of(self, unit: int) -> int:
        """Return the number of input rows of a unit: all have the same but the last."""
        return min(self.listing.unit_rows, self.listing.num_rows - unit * self.listing.unit_rows)

    def units(self, run: str, *, sealed: bool = True) -> Units:
        """Return the units of this job as a merge needs them; `sealed` False where the first release began the run."""
        return Units(
            folder=self.settings.output,
            run=run,
            num_units=self.listing.num_units,
            answers_of=lambda unit: self.rows_of(unit) * self.num_prompts,
            schema=self.answer_schema,
            sealed=sealed,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """The last line of stdout. `rows` are answer rows; `images_per_s` is None where this call answered nothing."""

    rows: int
    ok: int
    errors: int
    images_per_s: float | None
    output: str
    scores: Scores | None = None  # where --reference-column says what is right


def plan_job(job: str, settings: JobSettings, default_prompt: str, model: Pin | None = None) -> Plan:
    """Look at the input and the model, fill what was left open; raise ValueError naming what is wrong.

    A `model` that is given is not looked for.
    """
    if settings.reference_column is not None:
        check_scoring("--reference-column")
    check_job_form(settings)
    if job == "ocr" and settings.image_tokens < 1:
        raise Refused(f"--image-tokens {settings.image_tokens} is not for ocr: a page's text is in all of its tokens")
    settings = _with_whole_roots(settings)
    choices = ColumnChoices(
        image=settings.image_column,
        id=settings.id_column,
        prompt=settings.prompt_column,
        messages=settings.messages_column,
        keep=settings.keep,
        reference=settings.reference_column,
        own_prompts=bool(settings.prompt),
        json_schema=settings.json_schema_column,
        image_root=settings.image_root,
        values=tuple(dict.fromkeys(name for text in settings.prompt for name in columns_in(text))),
    )
    begun = read_run(settings.output)
    unit_rows = settings.unit_rows or _begun_unit_rows(begun) or (_UNIT_OF_PAGES if settings.strips == "auto" else None)
    settings = settings.model_copy(update={"input": at_versions(settings.input, _begun_input(begun))})
    listing = list_input(settings.input, choices, settings.limit, unit_rows, settings.output)
    if settings.shard is not None:
        listing = listing.shard(settings.shard_number, settings.num_shards)
    if not settings.prompt and listing.columns.prompt is None and listing.columns.messages is None:
        settings = settings.model_copy(update={"prompt": (default_prompt,)})
    # What is in a store is spelled as it was.
    input = tuple(fs.absolute(url) if fs.is_local(url) else url for url in settings.input)
    settings = settings.model_copy(update={"input": input})
    if model is None:
        settings, model = resolve_model(settings)
    kept = [(kept.name, kept.type) for kept in listing.columns.keep]
    more = answer_columns(settings)
    if twice := dict(kept).keys() & dict(more).keys():
        name = min(twice)
        raise Refused(f"--keep {name}: the answers have a column {name!r}; write --keep input_{name}={name}")
    schema = as_written(written_schema([*kept, *more]))
    return Plan(job=job, settings=settings, listing=listing, model=model, answer_schema=schema)


def _named_prompts(settings: JobSettings) -> list[str]:
    """Return the names of a row's answers; none where rows ask something of their own, once."""
    return list(settings.prompt_ids) if settings.prompt or settings.num_answers > 1 else []


def _without_folder(model: str | None) -> str | None:
    """Return what of a model's name two runs must share: of a folder nothing, as its hash says whether it is the same
    one. A submitted job finds it somewhere else every time."""
    return "a folder" if model is not None and os.path.isabs(model) else model


def _with_whole_roots(settings: JobSettings) -> JobSettings:
    """Return the settings with whole paths of images' folders: workers, and later commands, may be in another one."""
    roots = tuple(map(fs.absolute, settings.allow_root))
    image_root = settings.image_root and fs.absolute(settings.image_root)
    return settings.model_copy(update={"allow_root": roots, "image_root": image_root})


def resolve_model(settings: JobSettings) -> tuple[JobSettings, Pin]:
    """Return the settings with nothing left open about the model, and the proof of it; raise Refused where it cannot be
    loaded as it is."""
    settings = at_their_folders(settings)
    check_revision(settings)
    settings = at_their_folders(with_base(settings))  # whose base an adapter may name
    model = pin(settings.model, settings.revision)
    settings = at_its_commit(settings, model)
    settings = _with_chat_template(with_adapters_template(settings))
    proof = prove(settings, model)
    if (said := describe_generation(settings)) is not None:
        sys.stderr.write(f"{said}\n")
    return settings, proof


def _begun_input(run: dict[str, Any] | None) -> tuple[str, ...]:
    """Return the inputs of the run that has begun in a folder, () where none has."""
    return () if run is None else tuple(map(str, run["settings"].get("input", ())))


def _begun_unit_rows(run: dict[str, Any] | None) -> int | None:
    """Return the rows of a unit of the run that has begun in a folder: another release may choose another number."""
    return None if run is None else run["identity"].get("unit_rows")


def _with_chat_template(settings: JobSettings) -> JobSettings:
    """Return the settings with nothing left `auto` about how prompts are rendered. Preprocess checks whether it
    suits."""
    facts = with_image_tokens(read_facts(locate(settings.model), settings.revision), settings.image_tokens)
    return settings.model_copy(update={"chat_template": choose_template(settings.chat_template, facts)})


def find_complete(plan: Plan, *, held: bool = False) -> Summary | None:
    """Return the summary of this very job where it has been done before and every file of it is whole.

    Only a driver that has `held` the folder removes units that a kill has left there: without the lock they may be
    another driver's, and the folder is left to one that has it.
    """
    folder = plan.settings.output
    if not is_complete(folder, plan.describe()):
        return None
    manifest = read_manifest(folder)
    assert manifest is not None
    if find_gone(folder, manifest):
        return None
    units = fs.join(folder, "units")  # a kill may have come between the manifest and their end
    if held:
        fs.delete(units)
        note_end(folder, manifest)
    elif fs.exists(units) or _lacks_end(folder, manifest):
        return None
    manifest = with_scores(plan.settings, manifest)
    sys.stderr.write(f"already complete: {manifest['rows']:,} answers in {folder}\n")
    if is_retried(folder, manifest):
        sys.stderr.write("a retry of its failed rows was stopped: retry-failed finishes it\n")
    return summarise(manifest, folder, None)


def note_end(folder: str, manifest: dict[str, Any]) -> None:
    """Note that a complete run has finished where a kill has come between its manifest and that event."""
    if _lacks_end(folder, manifest):
        counts = {name: manifest[name] for name in ("rows", "ok", "errors")}
        Events.of(folder).add("finished", time.monotonic(), **counts)


def _lacks_end(folder: str, manifest: dict[str, Any]) -> bool:
    event = last_event(folder)
    return event is not None and event.get("event") != "finished" and not is_retried(folder, manifest)


def with_scores(settings: JobSettings, manifest: dict[str, Any]) -> dict[str, Any]:
    """Return the manifest of a complete run, scored if that is asked and not done; scoring again gives the same."""
    if settings.reference_column is None or "scores" in manifest:
        return manifest
    return score_run(settings.output, manifest)


def summarise(manifest: dict[str, Any], folder: str, images_per_s: float | None) -> Summary:
    """Return the summary of a manifest."""
    return Summary(
        rows=manifest["rows"],
        ok=manifest["ok"],
        errors=manifest["errors"],
        images_per_s=images_per_s and round(images_per_s, 3),
        output=folder,
        scores=scores_in(manifest),
    )


def _layout(listing: Listing) -> str:
    """Return a hash of which row stands where: the files' names and numbers of rows, in order."""
    texts = (listing.files.column(name).cast(pa.string()) for name in ("name", "num_rows"))
    lines = pc.binary_join_element_wise(*texts, "\t")
    return hashlib.sha256("\n".join([listing.format, *lines.to_pylist()]).encode()).hexdigest()[:16]


def _versions() -> dict[str, Any]:
    packages = ("torch", "transformers", "ray", "pyarrow", "pillow")
    return {"versions": {"python": sys.version.split()[0], **{name: version_of(name) for name in packages}}}
