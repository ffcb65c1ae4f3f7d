"""Retry: failed or cut rows of a complete run once more, and their new answers instead of the old.

.run/run.json                 first: the settings that the retry has instead of the run's
.run/attempts/retry-0001.pq   then: the chosen answers as they were, each with its position; the list of what to do
.run/retry/units/*.pq         while it runs: the new answers
answers/*.parquet             then, file by file and each at once: the new answers where the old ones were
.run/manifest.json            last: the new hashes and counts; retry/ goes after it

A kill at any point is mended by the same command: positions are absolute, so that replacing again changes nothing.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
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
from pipeline.execution.executor import Loaders, answer_units, in_rounds, say, unless_broken
from pipeline.execution.progress import Progress
from pipeline.execution.ray_errors import RunFailed
from pipeline.execution.signals import guarded
from pipeline.execution.work_units import BatchPlan, Owned, Shard
from pipeline.job import noted
from pipeline.plan import Plan, Summary, note_end, summarise, with_scores
from pipeline.run_folder.answer_files import LostFile, read_stated, read_tables
from pipeline.run_folder.events import Events
from pipeline.run_folder.layout import below, retry_folder, state_folder
from pipeline.run_folder.leftovers import remove_leftovers
from pipeline.run_folder.lock import Lock, hold
from pipeline.run_folder.markers import Markers
from pipeline.run_folder.mend import (
    POSITION,
    StartedRetry,
    find_gone,
    find_retry,
    retry_list,
    retry_marks,
    retry_name,
)
from pipeline.run_folder.merge import UNITS_AHEAD, Units, check_units, clear_work, in_manifest, write_answers
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
    Counts,
    ErrorType,
    count_answers,
    difference,
    done_units,
    read_table,
    to_sealed,
)
from pipeline.sources.kept import restore, to_travel
from pipeline.sources.open_files import OpenFiles
from pipeline.sources.reader import UnitReader, unit_reader
from pipeline.stages.preprocess import Preprocess
from pipeline.storage import filesystem as fs
from pipeline.verify import plan_of
from schemas.answer import with_added
from schemas.errors import Failure, Refused
from schemas.job import JobSettings
from schemas.wording import counted, describe_settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Choice of rows that are tried again, and of their settings. Without a finish reason those that failed; None takes
    all."""

    error_type: str | None = None
    stage: str | None = None
    finish_reason: str | None = None  # of rows that have an answer, as `length`
    prompt_id: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)  # of a job, instead of the run's
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
        retry = begin_retry(plan, run, manifest, choice, lock.confirm)
        if retry is None:
            say("no rows of that kind: nothing to try again")
            note_end(folder, manifest)
            # A kill between the manifest and its scores left none.
            return summarise(with_scores(plan.settings, manifest), folder, None)
        say(retry.describe())  # before Ray starts, which takes its time
        shard = retry.shard(loaders, lock)

        def answer(units: list[int]) -> Progress:
            rows = sum(len(retry.rows[unit]) for unit in units) * plan.num_prompts
            batch_plan = BatchPlan.of([shard], [units], loaders.engine)
            return answer_units(batch_plan, rows, lock, events, continue_with_changes=changes)

        events = Events.of(folder, lock.confirm)
        with noted(events, retry=retry.number, answers=len(retry.positions), units=len(retry.rows)) as end:
            progress = _answer_rows(retry, answer)
            manifest.pop("scores", None)  # of the answers as they were
            manifest = retry.finish({**manifest, "fingerprint": run["fingerprint"]}, lock.confirm)
            end |= {name: manifest[name] for name in ("rows", "ok", "errors")}
        manifest = with_scores(plan.settings, manifest)
    pace = progress.rows_per_s() if progress else None
    return summarise(manifest, folder, pace and pace / plan.num_prompts)


def with_settings(settings: JobSettings, changes: Mapping[str, Any]) -> JobSettings:
    """Return the settings of a retry: no error budget, as all of its rows may have failed before; raise Refused."""
    changed = {**settings.model_dump(), **changes, "max_error_rate": 1.0, "max_fetch_error_rate": None}
    try:
        return JobSettings.model_validate(changed)
    except ValidationError as error:
        raise Refused("\n".join(describe_settings(error))) from error


def begin_retry(
    plan: Plan,
    run: dict[str, Any],
    manifest: dict[str, Any],
    choice: Choice,
    confirm: Callable[[], None] = lambda: None,
) -> "Retry | None":
    """Write down which rows are tried again, and return their retry; None where there are none of that kind.

    A retry that was stopped goes before, with the rows that it had. `confirm` is called before anything is written, and
    raises where the folder is another driver's by now.
    """
    folder, number = plan.settings.output, len(manifest["retries"]) + 1
    history = retry_list(folder, number)
    if fs.exists(history):
        say(f"going on with the retry that {history} lists; others are for the next call")
    else:
        fs.delete(retry_folder(folder))
        chosen = pa.concat_tables(_select(folder, manifest, choice))
        if not chosen.num_rows:
            return None
        confirm()
        record_retry(folder, number, dict(choice.settings))
        fs.create_new(history, to_sealed(restore(chosen)))  # or it is that of a driver that has followed this one
    positions = _read_history(folder, number).column(POSITION).to_numpy()
    rows = _rows_by_unit(positions // plan.num_prompts, plan.listing.unit_rows)
    return Retry(plan=plan, number=number, run=run["run"], positions=positions, rows=rows)


def _read_history(folder: str, number: int) -> pa.Table:
    """Return the chosen answers as they were; raise RunMismatch where their file is damaged."""
    run = read_run(folder)
    return to_travel(read_rows(retry_list(folder, number), sealed=run is None or has_seals(run)))


def _rows_by_unit(rows: npt.NDArray[np.int64], unit_rows: int) -> dict[int, list[int]]:
    """Return the rows to read of each unit; a row is read once, whichever of its prompts have failed."""
    by_unit: dict[int, list[int]] = {}
    for row in np.unique(rows).tolist():
        by_unit.setdefault(row // unit_rows, []).append(row % unit_rows)
    return by_unit


def _answer_rows(retry: "Retry", answer: Callable[[list[int]], Progress]) -> Progress | None:
    """Answer what has no new answer yet, broken units again; return how it went, None where all was there."""
    units, progress = retry.units, None

    def one_round() -> bool | None:
        nonlocal progress
        done = done_units(units.folder)
        if todo := [unit for unit in retry.rows if unit not in done]:
            progress = answer(todo)
        return unless_broken(lambda: check_units(units, list(retry.rows)), units.folder)

    in_rounds(one_round, units.folder)
    return progress


@dataclass(frozen=True, slots=True)
class SomeRows:
    """Reads some rows of units."""

    read: UnitReader
    rows: dict[int, list[int]]  # of each unit

    def __call__(self, unit: int, failure: Failure | None = None) -> pa.Table:
        """Return some rows of a unit."""
        return self.read(unit, failure).take(pa.array(self.rows[unit], pa.int64()))

    def narrowed(self, unit: int) -> UnitReader:
        """Return a reader of this unit's rows alone."""
        return SomeRows(self.read.narrowed(unit), {unit: self.rows[unit]})

    def using(self, files: OpenFiles) -> UnitReader:
        """Return the same, reading on in files that stay open."""
        return SomeRows(self.read.using(files), self.rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """Rows of a complete run that are tried again; the number counts from 1."""

    plan: Plan
    number: int
    run: str
    positions: npt.NDArray[np.int64]  # of these rows' answers among all
    rows: dict[int, list[int]]  # of each unit, those to read

    @property
    def history(self) -> str:
        """Return where the chosen answers are kept as they were."""
        return retry_list(self.plan.settings.output, self.number)

    @property
    def settings(self) -> dict[str, Any]:
        """Return the settings that this retry began with, instead of the run's."""
        return retry_settings(self.plan.settings.output, self.number)

    def describe(self) -> str:
        """Return a line that says how many answers are given again, and with which settings."""
        folder, changed = self.plan.settings.output, [f"{name} {value}" for name, value in self.settings.items()]
        with_them = f", with {', '.join(changed)}" if changed else ""
        return f"retry    {counted(len(self.positions), 'answer')} of {folder} to give again{with_them}"

    @property
    def units(self) -> Units:
        """Return the units of this retry: some of the run's, with those of their rows that are tried again."""
        return Units(
            folder=retry_folder(self.plan.settings.output),
            run=retry_name(self.run, self.number),
            num_units=self.plan.listing.num_units,
            answers_of=lambda unit: len(self.rows[unit]) * self.plan.num_prompts,
            schema=self.plan.answer_schema,
        )

    def shard(self, loaders: Loaders, lock: Lock) -> Shard:
        """Return what the actors are told of these rows."""
        settings = with_settings(self.plan.settings, self.settings)
        return Shard(
            settings=settings,
            read=SomeRows(unit_reader(self.plan.listing), self.rows),
            load_preprocess=partial(loaders.preprocess, parts=Preprocess(settings).parts),
            folder=self.units.folder,
            run=self.units.run,
            markers=Markers(folder=state_folder(self.plan.settings.output), driver=lock.owner.token),
            lock=Owned.of(lock),
        )

    def finish(self, manifest: dict[str, Any], confirm: Callable[[], None] = lambda: None) -> dict[str, Any]:
        """Replace the old answers by the new, then the manifest. Raises RunFailed where old ones are lost.

        `confirm` is called before each file that is replaced, and raises where the folder is another driver's by now.
        """
        folder, files, start = self.plan.settings.output, [], 0
        history, started, changes = _read_history(folder, self.number), find_retry(folder, manifest), _Changes()
        assert started is not None
        for file in manifest["files"]:
            inside = (self.positions >= start) & (self.positions < start + file["rows"])
            if inside.any():
                old, replaced = _old_answers(folder, file, started)
                there = self.positions[inside]
                listed = history.filter(pa.array(inside))
                before = with_added(listed if replaced else old.take(pa.array(there - start)))  # as the manifest counts
                new = _better(self._new_answers(there), before)
                mixed = restore(_replace(old, there - start, new))
                data = to_sealed(mixed, retry_marks(self.units.run, file["path"]))
                confirm()
                files.append(write_answers(folder, file["path"], data, file["rows"]))
                changes.add(before, new)
            else:
                files.append(file)
            start += file["rows"]
        manifest = {**manifest, **changes.applied_to(manifest), "files": files}
        manifest["retries"] = [*manifest["retries"], self._in_manifest(changes.new)]
        confirm()
        write_manifest(folder, manifest)
        fs.delete(retry_folder(folder))
        clear_work(folder)
        return manifest

    def _in_manifest(self, new: Counts) -> dict[str, Any]:
        rows = len(self.positions)
        return {
            "history": below(self.plan.settings.output, self.history),
            "rows": rows,
            "now_ok": rows - new.errors,
            "settings": self.settings,
            "sha256": hashlib.sha256(fs.read_bytes(self.history)).hexdigest(),
        }

    def _new_answers(self, positions: npt.NDArray[np.int64]) -> pa.Table:
        """Return the new answer of each of these positions, which are in order, of the units that have them."""
        units, num_prompts = self.units, self.plan.num_prompts
        answers_a_unit = self.plan.listing.unit_rows * num_prompts
        wanted = np.unique(positions // answers_a_unit).tolist()
        tables = []
        with ThreadPoolExecutor(UNITS_AHEAD) as pool:
            for unit, answers in zip(wanted, pool.map(units.read, wanted), strict=True):
                there = np.repeat(np.array(self.rows[unit]) * num_prompts, num_prompts)
                there += np.tile(np.arange(num_prompts), len(self.rows[unit])) + unit * answers_a_unit
                tables.append(to_travel(answers).filter(pa.array(np.isin(there, positions))))
        return pa.concat_tables(tables)


def _select(folder: str, manifest: dict[str, Any], choice: Choice) -> Iterator[pa.Table]:
    """Yield the answers of the chosen kind with their positions."""
    start = 0
    for file in manifest["files"]:
        for answers in read_tables(fs.join(folder, file["path"])):
            table = to_travel(answers)
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


def _replace(old: pa.Table, positions: npt.NDArray[np.int64], new: pa.Table) -> pa.Table:
    """Return `old` with its rows at `positions` replaced by those of `new`, in order."""
    order = np.arange(old.num_rows)
    order[positions] = old.num_rows + np.arange(len(positions))
    return pa.concat_tables([old, new.select(old.column_names).cast(old.schema)]).take(pa.array(order)).combine_chunks()


def _old_answers(folder: str, file: dict[str, Any], started: StartedRetry) -> tuple[pa.Table, bool]:
    """Return a file's answers, and whether this retry has put them there, which was stopped after it.

    Raises RunFailed for bytes that nobody vouches for: they must not get a new hash.
    """
    try:
        return to_travel(read_table(read_stated(folder, file))), False
    except LostFile as lost:
        if lost.data is None or not started.has_put(lost.data, file):
            raise RunFailed(f"{lost.path} was damaged meanwhile: the run's own command answers it again") from lost
        return to_travel(read_table(lost.data)), True


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
    """Counts that are taken off the manifest's, and those that are added."""

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
