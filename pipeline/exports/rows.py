"""Rows: the answers of a complete run, streamed in the order of the input, those that were chosen."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.run_folder.mend import find_lost, is_retried
from pipeline.run_folder.run import read_manifest, read_run
from pipeline.storage import filesystem as fs
from schemas.answer import FinishReason, with_added
from schemas.errors import Refused
from schemas.wording import one_line

Chosen = Literal["ok", "error", "all"]
ROWS_AT_ONCE = 2_048
CHOOSING = ("status", "finish_reason", "prompt_id")  # what rows are chosen by


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The answers that are exported: by status, by how they ended and by prompt; nothing named takes all."""

    status: Chosen = "all"
    finish_reason: tuple[FinishReason, ...] = ()
    prompt_id: tuple[str, ...] = ()

    def of(self, answers: pa.Table) -> pa.Table:
        """Return the chosen rows of a table of answers."""
        wanted: list[tuple[str, Sequence[str]]] = [("status", () if self.status == "all" else (self.status,))]
        wanted += [("finish_reason", self.finish_reason), ("prompt_id", self.prompt_id)]
        for column, values in wanted:
            if values:
                answers = answers.filter(pc.is_in(answers[column], value_set=pa.array(values, pa.string())))
        return answers


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A complete run folder, every file of it whole: what run.json and manifest.json say."""

    folder: str
    description: dict[str, Any]
    manifest: dict[str, Any]

    @property
    def settings(self) -> dict[str, Any]:
        """Return the settings that it was given."""
        found: dict[str, Any] = self.description["settings"]
        return found

    @property
    def prompt_ids(self) -> tuple[str, ...]:
        """Return the names of the prompts that every row was asked; one where rows asked something of their own."""
        return tuple(self.description["identity"].get("prompt_ids") or ("prompt",))

    @property
    def model(self) -> str:
        """Return the model as it was named."""
        return str(self.settings.get("model", "unknown"))

    @property
    def begun(self) -> datetime:
        """Return when the run began: the one time of an export, so that making it again gives the same bytes."""
        return datetime.fromisoformat(self.description.get("begun", "1970-01-01T00:00:00+00:00"))

    def key(self, options: dict[str, Any]) -> str:
        """Return what two exports share that write the same bytes."""
        told = [[file["sha256"] for file in self.manifest["files"]], self.description["run"], options]
        return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()

    def batches(self, file: dict[str, Any] | None = None, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """Yield the answers of one file, or of all, some rows at a time; every column, or those that are named."""
        for one in [file] if file else self.manifest["files"]:
            url = fs.join(self.folder, one["path"])
            with fs.open_url(url) as source, pq.ParquetFile(source, page_checksum_verification=True) as parquet:
                for batch in parquet.iter_batches(ROWS_AT_ONCE, columns=columns, use_threads=False):
                    table = pa.Table.from_batches([batch]).replace_schema_metadata(None)
                    yield table if columns else with_added(table)

    def chosen(self, choice: Choice, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Yield the chosen rows, with these of the columns that answers have always had."""
        for table in self.batches(columns=list(dict.fromkeys([*columns, *CHOOSING]))):
            yield from choice.of(table).select(list(columns)).to_pylist()

    def schema(self) -> pa.Schema:
        """Return the columns of the answers, as this release has them."""
        with fs.open_url(fs.join(self.folder, self.manifest["files"][0]["path"])) as source:
            return with_added(pq.read_schema(source).empty_table()).schema.remove_metadata()


def open_run(folder: str, name: str = "OUT") -> Run:
    """Return the complete run in a folder, which `name` gives; raise Refused where it is not complete, or not whole."""
    if not folder.strip():
        raise Refused(f"{name} must not be empty, got {folder!r}: is a variable of the shell unset?")
    try:
        run = read_run(folder)
        if run is None:
            raise Refused(f"{name} must be a run folder with a .run/run.json, {folder} has none")
        manifest = read_manifest(folder)
        if manifest is None:
            raise Refused(f"{name} must be a complete run, {folder} is not: run its command again until it is done")
        if is_retried(folder, manifest):
            raise Refused(f"{name} must be a complete run, a retry of {folder} was stopped: retry-failed finishes it")
        if lost := find_lost(folder, manifest):
            raise Refused(f"{name} must be whole, {lost[0]}: the run's own command answers that again")
    except OSError as error:
        raise Refused(f"{name} must be a folder that can be read, {folder}: {one_line(error)}") from error
    return Run(folder=folder, description=run, manifest=manifest)


def check_prompts(run: Run, choice: Choice) -> None:
    """Raise Refused where a prompt is chosen that the run does not have."""
    for name in choice.prompt_id:
        if name not in run.prompt_ids:
            raise Refused(f"--prompt-id must be one of {', '.join(run.prompt_ids)}, got {name!r}")
