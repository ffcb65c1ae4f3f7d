"""Verify: whether a run folder holds what it promises, by reading all of it; an answer file at a time in memory.

The ids that must be there come from the input, read again; nothing that the run wrote is trusted for them.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import ValidationError

from pipeline.checkpoint import Pin
from pipeline.plan import Plan, plan_job
from pipeline.run_folder.answer_files import LostFile, read_stated, read_tables
from pipeline.run_folder.layout import state_path
from pipeline.run_folder.mend import find_lost
from pipeline.run_folder.run import RunMismatch, changed_files, has_seals, read_manifest, read_run
from pipeline.run_folder.units import BrokenUnit, count_answers, done_units
from pipeline.sources.duplicates import find_duplicates
from pipeline.sources.reader import read_unit_ids
from pipeline.storage import filesystem as fs
from schemas.answer import answer_schema_of, table_to_answers
from schemas.errors import Refused
from schemas.job import JobSettings
from schemas.wording import describe_settings, one_line

Key: TypeAlias = tuple[str, str]  # id and prompt_id of an answer
SHOWN = 20  # problems of a sort that are named
_LOOKS = 5


def verify_run(folder: str) -> list[str]:
    """Return everything that is wrong with a run folder, [] where nothing is. Raises Refused where there is no run.

    A folder whose run or retry comes to its end meanwhile is looked at again.
    """
    for _ in range(_LOOKS):
        before = _state(folder)
        try:
            problems = _verify(folder)
        except (OSError, Unreadable) as error:
            if _state(folder) == before:
                raise Refused(f"{folder} cannot be read: {one_line(error)}") from error
        else:
            if _state(folder) == before:
                return problems
    raise Refused(f"{folder} changes while it is read: wait for the driver that works on it, then verify it again")


class Unreadable(RuntimeError):
    """A file of the run that must be whole is not, or not any more."""


def _state(folder: str) -> list[bytes | None]:
    """Return the files that change when what is in a folder means something else."""
    found: list[bytes | None] = []
    for name in ("run.json", "manifest.json"):
        try:
            found.append(fs.read_bytes(state_path(folder, name)))
        except OSError:  # what is wrong with it will be said where it is read
            found.append(None)
    return found


def _verify(folder: str) -> list[str]:
    run = read_run(folder)
    if run is None:
        raise Refused(f"OUT must be a run folder with a .run/run.json, {folder} has none")
    try:
        plan = plan_of(folder, run, model=Pin(hash=run["identity"].get("model_hash", "")))  # the model may be gone
    except ValueError as error:
        return [f"the input cannot be looked at any more: {error}"]
    problems: list[str] = []
    changed: list[str] = []
    try:
        changed += changed_files(folder, plan.listing.files)
    except RunMismatch as error:
        problems.append(str(error))
    if plan.listing.fingerprint() != run["identity"].get("input_hash"):
        changed = changed or ["  other files or rows than were listed"]
    problems += [f"the input has changed since the run began: {line.strip()}" for line in changed]
    manifest = read_manifest(folder)
    if manifest is None:
        return problems + list(_verify_units(plan, run))
    problems += _verify_files(folder, manifest)
    problems += _verify_scores(folder, manifest)
    problems += _verify_attempts(folder, manifest)
    if changed or any(problem.startswith("answers/") for problem in problems):
        return problems  # what follows reads these files and would say the same again
    return problems + list(_verify_answers(plan, manifest))


def plan_of(folder: str, run: dict[str, Any], *, model: Pin | None = None) -> Plan:
    """Return the plan that a run.json came from, made again from its settings for the folder as it is named now."""
    identity = run["identity"]
    try:
        placed = {**run["settings"], "output": folder, "unit_rows": identity["unit_rows"], "gpus": None}
        settings, job = JobSettings.model_validate(placed), str(identity["job"])
    except ValidationError as error:
        raise Refused(f"{folder} has settings that are not this release's: {describe_settings(error)[0]}") from error
    except KeyError as error:
        raise Refused(f"{folder}/.run/run.json must name the {error} of its run, it does not") from error
    return plan_job(job, settings, "", model)


def _verify_units(plan: Plan, run: dict[str, Any]) -> Iterator[str]:
    units, input = plan.units(run["run"], sealed=has_seals(run)), _Input(plan)
    done = done_units(units.folder)
    yield (
        f"the run is not complete: {len(done):,} of {units.num_units:,} units are done; run its command again to go on"
    )
    for unit in sorted(done):
        if unit >= units.num_units:
            yield f"units/ has a unit {unit} that the run does not have"
            continue
        try:
            table = units.read(unit)
        except FileNotFoundError:  # merged meanwhile by a driver that has come to its end
            continue
        except BrokenUnit as error:
            yield str(error)
            continue
        wanted = input.keys_of(unit)
        if input.by_id(wanted, table, unit * plan.listing.unit_rows * plan.num_prompts) != wanted:
            yield f"unit {unit} must have the answers of its rows in the order of the input, it has others"


def _verify_files(folder: str, manifest: dict[str, Any]) -> Iterator[str]:
    """Yield the files that are missing, foreign, or not the bytes that the manifest states."""
    there = {fs.absolute(file.url) for file in fs.list_folder(fs.join(folder, "answers"), ("",))}
    stated = {fs.absolute(fs.join(folder, file["path"])): file for file in manifest["files"]}
    yield from (f"answers/ has a file that is not in the manifest: {url}" for url in sorted(there - stated.keys()))
    for lost in find_lost(folder, manifest):
        mend = "retry-failed was stopped and finishes it" if lost.by_retry else "the run's command answers it again"
        yield f"{lost}; {mend}"


def _verify_scores(folder: str, manifest: dict[str, Any]) -> Iterator[str]:
    stated = manifest.get("scores")
    if stated is None:
        return
    yield from _verify_hash(folder, stated)


def _verify_attempts(folder: str, manifest: dict[str, Any]) -> Iterator[str]:
    """Yield what is wrong with the answers that retries have replaced, as far as their hashes are known."""
    for retry in manifest["retries"]:
        if retry.get("sha256"):
            yield from _verify_hash(folder, {"path": retry["history"], "sha256": retry["sha256"]})


def _verify_hash(folder: str, file: dict[str, Any]) -> Iterator[str]:
    try:
        read_stated(folder, file)
    except LostFile as lost:
        yield f"{lost.path} is missing or not the file that was written"


def _verify_answers(plan: Plan, manifest: dict[str, Any]) -> Iterator[str]:
    """Yield what is wrong with the answers. Every id and prompt must be there once, in order; rows must agree with the
    schema, with themselves and with the manifest's counts."""
    input = _Input(plan)
    expected = input.keys()
    compared, counts = _Compared(), {"rows": 0, "errors": 0}
    for file in manifest["files"]:
        rows = 0
        for table in _tables_of(fs.join(plan.settings.output, file["path"])):
            wanted = list(islice(expected, table.num_rows))
            compared.add(wanted, input.by_id(wanted, table, counts["rows"]))
            yield from _verify_rows(table, file["path"])
            rows += table.num_rows
            counts["rows"] += table.num_rows
            counts["errors"] += count_answers(table).errors
        if rows != file["rows"]:
            yield f"{file['path']} must have {file['rows']} answers, it has {rows}"
    compared.missing.update(expected)
    duplicates = find_duplicates(plan.listing)
    if duplicates is not None:
        yield f"ids of the input must differ, {duplicates}"
    if compared.missing or compared.surplus:
        yield from (f"ids of the input cannot be read any more: {message}" for message in islice(input.unread, SHOWN))
    yield from compared.problems()
    yield from (
        f"manifest.json says {manifest[name]:,} {name}, the answers have {counts[name]:,}"
        for name in counts
        if manifest[name] != counts[name]
    )


class _Input:
    """The rows of the input as they are read by now, and where each stands."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._names = plan.listing.files.column("name")
        self._ends = np.cumsum(plan.listing.files.column("num_rows").to_numpy()) - plan.listing.rows_before
        self.unread: dict[str, None] = {}  # why rows' ids cannot be read now

    def keys(self) -> Iterator[Key]:
        """Yield the id and prompt of every answer there must be, in order."""
        for unit in range(self._plan.listing.num_units):
            yield from self.keys_of(unit)

    def keys_of(self, unit: int) -> list[Key]:
        """Return the id and prompt of every answer there must be in a unit, in order."""
        prompt_ids = self._plan.settings.prompt_ids
        return [(id, prompt_id) for id in self._ids_of(unit) for prompt_id in prompt_ids]

    def _ids_of(self, unit: int) -> list[str]:
        """Return the ids of a unit's rows, without reading their images."""
        ids, unread = read_unit_ids(self._plan.listing, unit)
        self.unread |= dict.fromkeys(unread)
        return ids

    def by_id(self, wanted: list[Key], table: pa.Table, first: int) -> list[Key]:
        """Return the keys of these answers, of which `first` is the position; an unread row's by the id that it has by
        now."""
        found: list[Key] = list(zip(table["id"].to_pylist(), table["prompt_id"].to_pylist(), strict=True))
        unread = np.flatnonzero(pc.fill_null(pc.equal(table["error_stage"], "read"), False).to_numpy())
        for i in unread.tolist():
            if i < len(wanted) and found[i][0] == self._place((first + i) // self._plan.num_prompts):
                found[i] = (wanted[i][0], found[i][1])
        return found

    def _place(self, row: int) -> str:
        file = int(np.searchsorted(self._ends, row, side="right"))
        if file == len(self._ends):
            return ""
        start = int(self._ends[file - 1]) if file else -self._plan.listing.rows_before
        return f"{self._names[file].as_py()}:{row - start}"


@dataclass(slots=True, kw_only=True)
class _Compared:
    """The answers that there are beside those that there must be; rows that have only moved leave nothing over."""

    missing: Counter[Key] = field(default_factory=Counter)
    surplus: Counter[Key] = field(default_factory=Counter)
    moved: Key | None = None  # the first answer that stands where another must

    def add(self, wanted: list[Key], found: list[Key]) -> None:
        """Compare some more of both."""
        if wanted == found:
            return
        if self.moved is None:
            self.moved = next((key for key, other in zip(found, wanted, strict=False) if key != other), None)
        self.missing.update(wanted)
        self.surplus.update(found)
        for key in self.missing.keys() & self.surplus.keys():
            both = min(self.missing[key], self.surplus[key])
            for counter in (self.missing, self.surplus):
                counter[key] -= both
                if not counter[key]:
                    del counter[key]

    def problems(self) -> Iterator[str]:
        """Yield what is wrong, the first few by name."""
        if self.moved and not self.missing and not self.surplus:
            yield f"answers are not in the order of the input: one for id {self.moved[0]!r} stands where another must"
        yield from _name(self.missing, "is missing")
        yield from _name(self.surplus, "is there once too often, or is not of this input")


def _name(keys: Counter[Key], what: str) -> Iterator[str]:
    for id, prompt_id in islice(keys.elements(), SHOWN):
        yield f"the answer for id {id!r} and prompt {prompt_id!r} {what}"
    if keys.total() > SHOWN:
        yield f"and {keys.total() - SHOWN:,} more answers of which each {what}"


def _tables_of(url: str) -> Iterator[pa.Table]:
    try:
        yield from read_tables(url)
    except (OSError, pa.ArrowException) as error:
        raise Unreadable(f"{url}: {one_line(error)}") from error


def _verify_rows(table: pa.Table, path: str) -> Iterator[str]:
    expected = answer_schema_of(table)
    columns = table.select(table.column_names[: len(expected)]).schema.remove_metadata()
    if columns.names != expected.names or columns.types != expected.types:
        yield f"{path} must begin with the columns of an answer, it has {', '.join(table.column_names)}"
        return
    try:
        table_to_answers(table)
    except ValueError as error:
        yield f"{path}: {error}"
