"""Retry: failed or cut rows of a complete run once more, and their new answers in the place of the old.

run.json                      first: the settings that the retry has in place of the run's
attempts/retry-0001.parquet   then: the chosen answers as they were, each with its position; the list of what to do
retry/units/*.parquet         while it runs: the new answers
answers/*.parquet             then, file by file and each at once: the new answers where the old ones were
manifest.json                 last: the new hashes and counts; retry/ goes after it

A kill at any point is mended by the same command: positions are absolute, so that replacing again changes nothing.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import ValidationError

from pipeline.environment import check_wait
from pipeline.execution.executor import Executor, Loaders, say
from pipeline.execution.progress import Progress
from pipeline.execution.ray_data import RunFailed
from pipeline.execution.signals import guarded
from pipeline.job import ROUNDS
from pipeline.plan import Plan, Summary, summarise, with_scores
from pipeline.run_folder.leftovers import remove_leftovers
from pipeline.run_folder.lock import hold
from pipeline.run_folder.mend import Begun, find_gone, find_retry, is_stated, retry_list, retry_marks, retry_name
from pipeline.run_folder.merge import Units, clear_work, in_manifest, write_answers
from pipeline.run_folder.run import (
    RunMismatch,
    begin_run,
    check_run,
    has_seals,
    read_manifest,
    read_rows,
    read_run,
    record_retry,
    retry_settings,
    write_manifest,
)
from pipeline.run_folder.units import (
    BrokenUnit,
    Counts,
    ErrorType,
    count_answers,
    difference,
    done_units,
    read_table,
    to_sealed,
    unit_path,
)
from pipeline.sources.kept import restore, to_travel
from pipeline.sources.reader import UnitReader, unit_reader
from pipeline.storage import filesystem as fs
from pipeline.verify import plan_of
from schemas.answer import with_added
from schemas.errors import Failure, Refused
from schemas.job import JobSettings
from schemas.wording import describe_settings

POSITION = "answer:position"  # of a retried row among all answers, from 0
_ROWS_AT_ONCE = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Which rows are tried again, and how. Without a finish reason those that failed; None takes all."""

    error_type: str | None = None
    stage: str | None = None
    finish_reason: str | None = None  # of rows that have an answer, as `length`
    prompt_id: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)  # of a job, in place of the run's
    continue_with_changes: bool = False

    def __post_init__(self) -> None:
        if self.finish_reason is not None and (self.error_type or self.stage):
            raise Refused("a row has a finish reason or an error: --finish-reason excludes --stage and --error-type")


def retry_failed(folder: str, choice: Choice, loaders: Loaders) -> Summary:
    """Try the chosen rows of a complete run again. Raises Refused where the folder holds no such run."""
    run = read_run(folder)
    if run is None or read_manifest(folder) is None:
        raise Refused(f"OUT must be a complete run, {folder} is not: run its job until it is done")
    plan = plan_of(folder, run)
    check_wait(with_settings(plan.settings, choice.settings).wait_for_cluster)  # refuses what is no setting, too
    with guarded(), hold(folder) as lock:
        remove_leftovers(folder)
        manifest = read_manifest(folder)  # as the driver that held the folder before has left it
        assert manifest is not None
        if gone := find_gone(folder, manifest):
            raise Refused(f"OUT must be whole, {gone[0]}: the run's own command answers that again")
        changes = choice.continue_with_changes
        check_run(folder, plan.describe(), plan.listing.files, continue_with_changes=changes)
        _check_columns(plan, manifest)
        run = begin_run(folder, plan.describe(), plan.listing.files, continue_with_changes=changes)
        retry = _Retry(plan=plan, number=len(manifest["retries"]) + 1, run=run["run"])
        positions = retry.begin(manifest, choice)
        if not len(positions):
            say("no rows of that kind: nothing to try again")
            # A kill between the manifest and its scores left none.
            return summarise(with_scores(plan.settings, manifest), folder, None)
        executor = Executor(
            settings=with_settings(plan.settings, retry.settings()),
            read=partial(_read_rows, unit_reader(plan.listing), retry.rows_by_unit(positions)),
            loaders=loaders,
            lock=lock,
            folder=retry.units(positions).folder,
            run=retry.units(positions).run,
            continue_with_changes=changes,
        )
        progress = retry.answer(executor, positions)
        lock.confirm()
        manifest.pop("scores", None)  # of the answers as they were
        manifest = retry.finish({**manifest, "fingerprint": run["fingerprint"]}, positions)
        manifest = with_scores(plan.settings, manifest)
    pace = progress.rows_per_s() if progress else None
    return summarise(manifest, folder, pace and pace / plan.num_prompts)


def with_settings(settings: JobSettings, changes: Mapping[str, Any]) -> JobSettings:
    """The settings of a retry: no error budget, as all of its rows may have failed before; raises Refused."""
    changed = {**settings.model_dump(), **changes, "max_error_rate": 1.0}
    try:
        return JobSettings.model_validate(changed)
    except ValidationError as error:
        raise Refused("\n".join(describe_settings(error))) from error


def _read_rows(read: UnitReader, rows: dict[int, list[int]], unit: int, failure: Failure | None = None) -> pa.Table:
    return read(unit, failure).take(pa.array(rows[unit], pa.int64()))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Retry:
    """One retry of a run; its number counts from 1."""

    plan: Plan
    number: int
    run: str

    @property
    def history(self) -> str:
        """Where the rows of this retry are kept as they were."""
        return retry_list(self.plan.settings.output, self.number)

    def begin(self, manifest: dict[str, Any], choice: Choice) -> npt.NDArray[np.int64]:
        """The positions of the rows to try, written down first; those of a retry that was stopped go before."""
        if fs.exists(self.history):
            say(f"going on with the retry that {self.history} lists; others are for the next call")
        else:
            fs.delete(fs.join(self.plan.settings.output, "retry"))
            chosen = pa.concat_tables(_select(self.plan.settings.output, manifest, choice))
            if not chosen.num_rows:
                return np.zeros(0, np.int64)
            record_retry(self.plan.settings.output, self.number, dict(choice.settings))
            fs.write_atomic(self.history, to_sealed(restore(chosen)))
        positions: npt.NDArray[np.int64] = self._history().column(POSITION).to_numpy()
        return positions

    def settings(self) -> dict[str, Any]:
        """The settings that this retry was begun with, in place of the run's."""
        return retry_settings(self.plan.settings.output, self.number)

    def rows_by_unit(self, positions: npt.NDArray[np.int64]) -> dict[int, list[int]]:
        """The rows to read of each unit; a row is read once, whichever of its prompts have failed."""
        rows = np.unique(positions // self.plan.num_prompts)
        by_unit: dict[int, list[int]] = {}
        for row in rows.tolist():
            by_unit.setdefault(row // self.plan.listing.unit_rows, []).append(row % self.plan.listing.unit_rows)
        return by_unit

    def units(self, positions: npt.NDArray[np.int64]) -> Units:
        """The units of this retry: some of the run's, with those of their rows that are tried again."""
        rows = self.rows_by_unit(positions)
        return Units(
            folder=fs.join(self.plan.settings.output, "retry"),
            run=retry_name(self.run, self.number),
            num_units=self.plan.listing.num_units,
            answers_of=lambda unit: len(rows[unit]) * self.plan.num_prompts,
            schema=self.plan.answer_schema,
        )

    def answer(self, executor: Executor, positions: npt.NDArray[np.int64]) -> Progress | None:
        """Answer what has no new answer yet; torn units are answered again."""
        units, rows = self.units(positions), self.rows_by_unit(positions)
        progress = None
        for _ in range(ROUNDS):
            done = done_units(units.folder)
            todo = [unit for unit in rows if unit not in done]
            if todo:
                progress = executor.answer(todo, sum(len(rows[unit]) for unit in todo) * self.plan.num_prompts)
            broken = list(_broken(units, list(rows)))
            if not broken:
                return progress
            for unit in broken:
                fs.delete(unit_path(units.folder, unit))
        raise RunFailed(f"units were broken {ROUNDS} times in a row: is the storage of {units.folder} sound?")

    def finish(self, manifest: dict[str, Any], positions: npt.NDArray[np.int64]) -> dict[str, Any]:
        """Put the new answers in the place of the old, then the manifest. Raises RunFailed where old ones are lost."""
        folder, files, start = self.plan.settings.output, [], 0
        history, begun, changes = self._history(), find_retry(folder, manifest), _Changes()
        assert begun is not None
        for file in manifest["files"]:
            inside = (positions >= start) & (positions < start + file["rows"])
            if inside.any():
                old, replaced = _old_answers(folder, file, begun)
                listed, there = history.filter(pa.array(inside)), pa.array(positions[inside] - start)
                before = with_added(listed if replaced else old.take(there))  # as the manifest counts them
                new = _better(self._new_answers(positions[inside]), before)
                mixed = restore(_replace(old, positions[inside] - start, new))
                data = to_sealed(mixed, retry_marks(retry_name(self.run, self.number), file["path"]))
                files.append(write_answers(folder, file["path"], data, file["rows"]))
                changes.add(before, new)
            else:
                files.append(file)
            start += file["rows"]
        retry = {"history": f"attempts/{self.history.rsplit('/', 1)[1]}", "rows": len(positions)}
        retry |= {"now_ok": len(positions) - changes.new.errors, "settings": self.settings()}
        retry["sha256"] = hashlib.sha256(fs.read_bytes(self.history)).hexdigest()
        manifest = {**manifest, **changes.applied_to(manifest)}
        manifest |= {"files": files, "retries": [*manifest["retries"], retry]}
        write_manifest(folder, manifest)
        fs.delete(fs.join(folder, "retry"))
        clear_work(folder)
        return manifest

    def _new_answers(self, positions: npt.NDArray[np.int64]) -> pa.Table:
        """Return the new answer of each position."""
        units, num_prompts = self.units(positions), self.plan.num_prompts
        tables = []
        for unit, rows in self.rows_by_unit(positions).items():
            first = unit * self.plan.listing.unit_rows
            there = np.repeat((np.array(rows) + first) * num_prompts, num_prompts)
            there += np.tile(np.arange(num_prompts), len(rows))
            tables.append(to_travel(units.read(unit)).filter(pa.array(np.isin(there, positions))))
        return pa.concat_tables(tables)

    def _history(self) -> pa.Table:
        """Return the chosen rows as they were; raise RunMismatch where their file is damaged."""
        run = read_run(self.plan.settings.output)
        return to_travel(read_rows(self.history, sealed=run is None or has_seals(run)))


def _select(folder: str, manifest: dict[str, Any], choice: Choice) -> Iterator[pa.Table]:
    """The answers of the chosen kind with their positions, file by file."""
    start = 0
    for file in manifest["files"]:
        with fs.open_url(fs.join(folder, file["path"])) as source, pq.ParquetFile(source) as parquet:
            for batch in parquet.iter_batches(_ROWS_AT_ONCE, use_threads=False):
                table = to_travel(pa.Table.from_batches([batch]))
                positions = pa.array(np.arange(start, start + table.num_rows))
                yield table.append_column(POSITION, positions).filter(_wanted(table, choice))
                start += table.num_rows


def _wanted(table: pa.Table, choice: Choice) -> pa.ChunkedArray:
    names = {"error_type": choice.error_type, "error_stage": choice.stage, "prompt_id": choice.prompt_id}
    names["finish_reason"] = choice.finish_reason
    wanted = pc.equal(table.column("status"), "error" if choice.finish_reason is None else "ok")
    for name, value in names.items():
        if value is not None:
            wanted = pc.and_(wanted, pc.fill_null(pc.equal(table.column(name), value), False))
    return wanted


def _broken(units: Units, numbers: list[int]) -> Iterator[int]:
    for number in numbers:
        try:
            units.read(number)
        except BrokenUnit as error:
            say(f"{error}; answering it again")
            yield number


def _replace(old: pa.Table, positions: npt.NDArray[np.int64], new: pa.Table) -> pa.Table:
    """`old` with its rows at `positions` replaced by those of `new`, in order."""
    order = np.arange(old.num_rows)
    order[positions] = old.num_rows + np.arange(len(positions))
    return pa.concat_tables([old, new.select(old.column_names).cast(old.schema)]).take(pa.array(order)).combine_chunks()


def _old_answers(folder: str, file: dict[str, Any], begun: Begun) -> tuple[pa.Table, bool]:
    """Return a file's answers, and whether this retry has put them there, which was stopped after it.

    Raises RunFailed for bytes that nobody vouches for: they must not get a new hash.
    """
    data = fs.read_bytes(fs.join(folder, file["path"]))
    replaced = not is_stated(data, file)
    if replaced and not begun.has_put(data, file):
        raise RunFailed(f"{file['path']} was damaged meanwhile: the run's own command answers it again")
    return to_travel(read_table(data)), replaced


def _better(new: pa.Table, before: pa.Table) -> pa.Table:
    """Return the new answers, each with an attempt more; the one before stays where it has a text and the new none."""
    attempts = pc.add(before.column("attempt"), pa.scalar(1, pa.int32()))
    index = new.schema.get_field_index("attempt")
    new = new.set_column(index, new.schema.field(index), attempts)
    worse = pc.and_(pc.equal(new.column("status"), "error"), pc.equal(before.column("status"), "ok"))
    kept = np.flatnonzero(worse.to_numpy())
    return _replace(new, kept, before.take(pa.array(kept)))


@dataclass(slots=True, kw_only=True)
class _Changes:
    """What is taken off the manifest's counts, and what is added to them."""

    old: Counts = field(default_factory=Counts)
    new: Counts = field(default_factory=Counts)

    def add(self, before: pa.Table, after: pa.Table) -> None:
        """Count some answers as they were and as they are."""
        self.old += count_answers(before)
        self.new += count_answers(after)

    def applied_to(self, manifest: dict[str, Any]) -> dict[str, Any]:
        """Return the counts that the manifest has afterwards."""
        types = Counter({(one["stage"], one["type"]): one["rows"] for one in manifest["errors_by_type"]})
        types.subtract({(one.stage, one.type): one.rows for one in self.old.by_type})
        types.update({(one.stage, one.type): one.rows for one in self.new.by_type})
        left = {key: rows for key, rows in sorted(types.items()) if rows > 0}
        by_type = tuple(ErrorType(stage=stage, type=kind, rows=rows) for (stage, kind), rows in left.items())
        errors = manifest["errors"] - self.old.errors + self.new.errors
        return in_manifest(Counts(rows=manifest["rows"], errors=errors, by_type=by_type))


def _check_columns(plan: Plan, manifest: dict[str, Any]) -> None:
    """Raise RunMismatch where new answers would have other columns than those that they are put beside."""
    wanted = plan.answer_schema
    for file in manifest["files"]:
        path = fs.join(plan.settings.output, file["path"])
        with fs.open_url(path) as source, pq.ParquetFile(source) as parquet:
            there = with_added(parquet.schema_arrow.empty_table()).schema
        if (there.names, there.types) != (wanted.names, wanted.types):
            raise RunMismatch(f"{path} must have the columns of new answers, {difference(there, wanted)}")
