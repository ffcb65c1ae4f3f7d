"""A whole job from Python: the same folder, guarantees and errors as the command, and its answers as rows or tables."""

import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.caption import PROMPT
from jobs.flags import checked
from jobs.ocr import OcrSettings, ocr_prompt
from llava_batch.settings import Settings, check_given
from pipeline.environment import cards_here, check_gpus
from pipeline.execution.ray_errors import RunFailed
from pipeline.execution.signals import Stopped
from pipeline.job import run_job
from pipeline.plan import Plan, Summary, find_complete, plan_job
from pipeline.preflight import check_writable
from pipeline.reports.outcome import describe_outcome
from pipeline.run_folder.answer_files import ROWS_AT_ONCE, read_tables
from pipeline.run_folder.run import read_manifest
from pipeline.stages.engine_settings import load_engine
from pipeline.storage import filesystem as fs
from schemas.errors import Refused
from schemas.job import JobSettings

Job = Literal["caption", "ocr"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """The answers of a complete run, in the order of the input; each way to read them begins anew.

    Iterate for rows as dicts, a table at a time in memory. pyarrow, polars, pandas and duckdb take the object itself
    by Arrow's stream protocol: `polars.DataFrame(run.answers())`.
    """

    schema: pa.Schema
    num_rows: int
    urls: tuple[str, ...]

    def __len__(self) -> int:
        return self.num_rows

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for table in self.tables():
            yield from table.to_pylist()

    def table(self) -> pa.Table:
        """Return all answers as one Arrow table."""
        return pa.concat_tables([self.schema.empty_table(), *self.tables()])

    def tables(self, rows: int = ROWS_AT_ONCE) -> Iterator[pa.Table]:
        """Yield Arrow tables of so many answers at most."""
        for url in self.urls:
            yield from read_tables(url, rows=rows)

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        batches = (batch for table in self.tables() for batch in table.to_batches())
        return pa.RecordBatchReader.from_batches(self.schema, batches).__arrow_c_stream__(requested_schema)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A complete run: counts of its answers, and the folder that they are in."""

    output: str
    rows: int  # answers, those that failed included
    ok: int
    errors: int
    images_per_s: float | None  # None where this call had nothing left to answer
    manifest: dict[str, Any]

    def answers(self) -> Answers:
        """Return the answers: rows to iterate over, or tables."""
        urls = tuple(fs.join(self.output, file["path"]) for file in self.manifest["files"])
        with fs.open_url(urls[0]) as file:
            schema = pq.read_schema(file)
        return Answers(schema=schema, num_rows=self.rows, urls=urls)


def run(settings: Settings, *, job: Job = "caption", continue_with_changes: bool = False) -> Run:
    """Answer every row of the input, or go on with what is left of it, and return the complete run.

    Raises Refused for settings, input or a model that cannot be used, before Ray starts; ErrorBudgetSpent and RunFailed
    where the command would end with status 1; OSError for a full disk or a store that is away; KeyboardInterrupt where
    it is stopped. What is done stays: the same call goes on.
    """
    check_given(settings)
    if settings.wait_for_cluster:
        raise Refused("wait_for_cluster is the command's alone: it begins its process again where a cluster is lost")
    if fs.is_local(settings.output):  # the answers of the Run may be read from another folder
        settings = settings.model_copy(update={"output": fs.absolute(settings.output)})
    plan = _plan(job, settings)
    summary = find_complete(plan)
    if summary is None:
        check_gpus(plan.settings.gpus, cards_here())
        try:
            summary = run_job(plan, load_engine, continue_with_changes=continue_with_changes)
        except Stopped as stop:
            if stop.exit_status == 128 + signal.SIGINT:
                raise KeyboardInterrupt from stop  # as everything else in Python says it
            raise SystemExit(stop.exit_status) from stop
    sys.stderr.write(f"{describe_outcome(summary)}\n")
    return _complete(summary, settings.max_error_rate)


def _plan(job: Job, settings: Settings) -> Plan:
    check_writable(settings.output)
    if job == "caption":
        return plan_job(job, checked(settings, JobSettings), PROMPT)
    if job == "ocr":
        asked = checked(settings, OcrSettings)
        return plan_job(job, asked, ocr_prompt(asked))
    raise Refused(f"job must be caption or ocr, got {job!r}")


def _complete(summary: Summary, max_error_rate: float) -> Run:
    if summary.errors and not summary.ok and max_error_rate < 1:
        raise RunFailed(f"all {summary.errors:,} answers failed; max_error_rate 1 takes that for a success")
    manifest = read_manifest(summary.output)
    assert manifest is not None  # it is written last, and the run is complete
    return Run(
        output=summary.output,
        rows=summary.rows,
        ok=summary.ok,
        errors=summary.errors,
        images_per_s=summary.images_per_s,
        manifest=manifest,
    )
