"""Join: the complete folders of all shards of an input, made one run folder, as if one submission had answered it all.

A kill at any point only repeats it: answer files depend on nothing but the shards', and the manifest is written last.
"""

import hashlib
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.checkpoint import Pin
from pipeline.plan import Plan, Summary, summarise, with_scores
from pipeline.run_folder.answer_files import read_tables
from pipeline.run_folder.layout import below
from pipeline.run_folder.leftovers import remove_leftovers
from pipeline.run_folder.lock import hold
from pipeline.run_folder.mend import POSITION, find_lost, is_retried, retry_list
from pipeline.run_folder.merge import clear_work, delete_strangers, in_manifest, parts_of, write_answers
from pipeline.run_folder.run import (
    FORMAT,
    RunMismatch,
    begin_run,
    differences,
    fingerprint,
    has_seals,
    read_manifest,
    read_rows,
    read_run,
    record_found,
    write_manifest,
)
from pipeline.run_folder.units import Counts, count_answers, difference, done_units, stream_to_parquet, to_sealed
from pipeline.sources.duplicates import refuse_duplicate_ids
from pipeline.storage import filesystem as fs
from pipeline.verify import plan_of
from schemas.errors import Refused
from schemas.run import STATE

_SHOWN = 8  # of what is missing or differs
_WRITTEN = (STATE, "answers", "units")


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """A complete folder: what its run.json and its manifest say."""

    folder: str
    run: dict[str, Any]
    manifest: dict[str, Any]

    @property
    def name(self) -> str:
        """Return which part of the input it has, as `2/8`."""
        return str(self.run["settings"]["shard"])

    @property
    def number(self) -> int:
        """Return the same as a number, from 1."""
        return int(self.name.partition("/")[0])

    @property
    def identity(self) -> dict[str, Any]:
        """Return what the whole run shares with all of its shards."""
        return {**self.run["identity"], "shard": None}

    def tables(self) -> Iterator[pa.Table]:
        """Yield the answers in order, some at a time."""
        for file in self.manifest["files"]:
            yield from read_tables(fs.join(self.folder, file["path"]))


def join_shards(folders: Sequence[str], output: str) -> Summary:
    """Make one complete run of the folders of all shards; raise Refused where they are not that. Folders stay as they
    are."""
    _check_apart(folders, output)
    shards = sorted((_shard_in(folder) for folder in folders), key=lambda one: one.number)
    _check_all_there(shards)
    _check_same(shards)
    plan = _whole_plan(shards[0], output)
    if (complete := _find_joined(plan, shards[0])) is not None:
        return complete
    _check_answers(plan, shards)
    refuse_duplicate_ids(plan.listing)
    with hold(output) as lock:
        remove_leftovers(output)
        run = begin_run(output, _description(shards[0], output), plan.listing.files)
        if done_units(output):
            raise Refused(f"--output {output} has answers of its own by now: choose another")
        for name, value in shards[0].run.get("settled", {}).items():
            record_found(output, name, value)
        manifest = _write(plan, run, shards)
        lock.confirm()
        delete_strangers(output, {file["path"] for file in manifest["files"]})
        write_manifest(output, manifest)
        clear_work(output)
        return summarise(with_scores(plan.settings, manifest), output, None)


def _check_apart(folders: Sequence[str], output: str) -> None:
    """Raise Refused where what is written would be in a shard, or a shard where a run keeps, and deletes, its own."""
    whole = fs.real(output)
    for folder in folders:
        if not folder.strip():
            raise Refused(f"a shard must not be empty, got {folder!r}: is a variable of the shell unset?")
        shard = fs.real(folder)
        if fs.is_within(whole, shard):
            raise Refused(f"--output must be outside of the shards' folders, {output} is within {folder}")
        if any(fs.is_within(shard, fs.join(whole, name)) for name in _WRITTEN):
            raise Refused(f"a shard must be outside of what a run keeps of its own, {folder} is within {output}")


def _shard_in(folder: str) -> Shard:
    """Return what a folder has; raise Refused where it is no complete shard, every file of it whole."""
    run = read_run(folder)
    if run is None:
        raise Refused(f"a shard must be a run folder, {folder} is none")
    if run["settings"].get("shard") is None:
        raise Refused(f"a shard must be answered with --shard I/N, {folder} was not")
    manifest, shard = read_manifest(folder), run["settings"]["shard"]
    if manifest is None:
        raise Refused(f"a shard must be complete, {folder} ({shard}) is not: run its command until it is done")
    if is_retried(folder, manifest):
        raise Refused(
            f"a shard must be complete, {folder} ({shard}) has a retry that was stopped: retry-failed ends it"
        )
    if lost := find_lost(folder, manifest):
        raise Refused(f"a shard must be whole, of {folder} ({shard}) {lost[0]}: its own command answers that again")
    return Shard(folder=folder, run=run, manifest=manifest)


def _check_all_there(shards: Sequence[Shard]) -> None:
    """Raise Refused unless every part of the input is there once."""
    first, num_shards = shards[0], shards[0].name.partition("/")[2]
    if other := next((one for one in shards if one.name.partition("/")[2] != num_shards), None):
        raise Refused(
            f"shards must be of one division, {first.folder} is {first.name} and {other.folder} is {other.name}"
        )
    twice = [name for name, count in Counter(one.name for one in shards).items() if count > 1]
    if twice:
        of = ", ".join(one.folder for one in shards if one.name == twice[0])
        raise Refused(f"every shard must be there once, {twice[0]} is there more than once: {of}")
    missing = sorted(set(range(1, int(num_shards) + 1)) - {one.number for one in shards})
    if missing:
        names = ", ".join(f"{number}/{num_shards}" for number in missing[:_SHOWN])
        more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
        raise Refused(f"every shard must be there once, {names}{more} {'is' if len(missing) == 1 else 'are'} missing")


def _check_same(shards: Sequence[Shard]) -> None:
    """Raise RunMismatch where shards have other settings, another model or other input, or were answered otherwise."""
    first, *others = shards
    for other in others:
        lines = [*differences(first.identity, other.identity), *differences(_settled(first), _settled(other))]
        if lines:
            shown = "\n".join(lines[:_SHOWN])
            raise RunMismatch(
                f"shards must be of one run, {first.folder} ({first.name}) and {other.folder} ({other.name}) differ "
                f"(there: the first):\n{shown}"
            )


def _settled(shard: Shard) -> dict[str, Any]:
    found: dict[str, Any] = shard.run.get("settled", {})
    return found


def _whole_plan(shard: Shard, output: str) -> Plan:
    """Return the plan of the whole input; raise RunMismatch where that is not what the shards were made of."""
    run = {**shard.run, "settings": {**shard.run["settings"], "shard": None}}
    plan = plan_of(output, run, model=Pin(hash=shard.identity["model_hash"]))
    if plan.listing.fingerprint() != shard.identity["input_hash"]:
        raise RunMismatch(f"the input must be as it was, other files or rows are there than {shard.folder} is made of")
    return plan


def _description(shard: Shard, output: str) -> dict[str, Any]:
    """Return the content of the whole run's run.json."""
    own = ("format", "run", "begun", "fingerprint", "changes", "settled")
    rest = {name: value for name, value in shard.run.items() if name not in own}
    return {**rest, "identity": shard.identity, "settings": {**shard.run["settings"], "shard": None, "output": output}}


def _find_joined(plan: Plan, shard: Shard) -> Summary | None:
    """Return the summary of what an earlier call has joined here."""
    output, run = plan.settings.output, read_run(plan.settings.output)
    if run is None or run["fingerprint"] != fingerprint(shard.identity):
        return None
    manifest = read_manifest(output)
    if manifest is None or find_lost(output, manifest):
        return None
    sys.stderr.write(f"already complete: {manifest['rows']:,} answers in {output}\n")
    return summarise(with_scores(plan.settings, manifest), output, None)


def _check_answers(plan: Plan, shards: Sequence[Shard]) -> None:
    """Raise Refused where a shard has other answers than those of its part, or in other columns."""
    for shard in shards:
        part = plan.listing.shard(shard.number, len(shards))
        if shard.manifest["rows"] != (wanted := part.num_rows * plan.num_prompts):
            raise Refused(
                f"{shard.folder} ({shard.name}) must have {wanted:,} answers, it has {shard.manifest['rows']:,}"
            )
        for file in shard.manifest["files"]:
            with fs.open_url(fs.join(shard.folder, file["path"])) as opened:
                schema = pq.read_schema(opened).remove_metadata()
            if not schema.equals(plan.answer_schema):
                what = difference(schema, plan.answer_schema)
                raise Refused(f"{shard.folder}/{file['path']} must have the columns of this run: {what}")


def _write(plan: Plan, run: dict[str, Any], shards: Sequence[Shard]) -> dict[str, Any]:
    """Write the answer files that one submission would have written, and return the manifest."""
    units, files, counts = plan.units(run["run"]), [], Counts()
    answers = _Answers(table for shard in shards for table in shard.tables())
    for path, part in parts_of(units).items():
        rows = sum(map(units.answers_of, part))
        tally = _Tallied(answers.take(rows))
        files.append(write_answers(units.folder, path, stream_to_parquet(iter(tally)), rows))
        counts += tally.counts
    said = [{"shard": one.name, "seconds": one.manifest["timings"].get("seconds", 0)} for one in shards]
    return {
        "format": FORMAT,
        "run": run["run"],
        "fingerprint": run["fingerprint"],
        **in_manifest(counts),
        "files": files,
        "retries": list(_join_retries(plan, shards)),
        "timings": {"seconds": round(sum(one["seconds"] for one in said), 3), "shards": said},
    }


class _Answers:
    """Answers in order, of which so many are taken at a time."""

    def __init__(self, tables: Iterator[pa.Table]) -> None:
        self._tables = tables
        self._left: pa.Table | None = None

    def take(self, rows: int) -> Iterator[pa.Table]:
        """Yield the next rows as tables."""
        while rows:
            table = next(self._tables) if self._left is None else self._left
            taken = table.slice(0, rows)
            self._left = table.slice(rows) if table.num_rows > rows else None
            rows -= taken.num_rows
            yield taken


class _Tallied:
    """Counts tables as they pass."""

    def __init__(self, tables: Iterator[pa.Table]) -> None:
        self.counts = Counts()
        self._tables = tables

    def __iter__(self) -> Iterator[pa.Table]:
        for table in self._tables:
            self.counts += count_answers(table)
            yield table


def _join_retries(plan: Plan, shards: Sequence[Shard]) -> Iterator[dict[str, Any]]:
    """Put what retries of the shards have replaced beside the answers; yield what the manifest says of each."""
    number, output = 0, plan.settings.output
    for shard in shards:
        before = plan.listing.shard(shard.number, len(shards)).rows_before * plan.num_prompts
        for own, retry in enumerate(shard.manifest["retries"], start=1):
            number += 1
            replaced = read_rows(retry_list(shard.folder, own), sealed=has_seals(shard.run))
            index = replaced.column_names.index(POSITION)
            positions = pa.array(replaced.column(index).to_numpy() + np.int64(before))
            path, data = retry_list(output, number), to_sealed(replaced.set_column(index, POSITION, positions))
            fs.write_atomic(path, data)
            yield {**retry, "history": below(output, path), "sha256": hashlib.sha256(data).hexdigest()}
