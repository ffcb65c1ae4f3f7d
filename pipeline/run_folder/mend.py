"""Mend: answer files of a complete run that are gone or torn, found and put back from their units, answered again.

A file holds the answers of consecutive units, so that what is lost is known by its number. Units go last, as in a
merge: a kill at any point only repeats it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.run_folder.answer_files import LostFile, read_stated, read_tables
from pipeline.run_folder.layout import state_table
from pipeline.run_folder.merge import Units, clear_work, finish_run, in_manifest, merge_parts, parts_of
from pipeline.run_folder.run import has_seals, read_manifest, read_run, write_manifest
from pipeline.run_folder.seal import BrokenSeal, check_seal, is_sealed, marks_of
from pipeline.run_folder.units import Counts, count_answers, done_units
from pipeline.storage import filesystem as fs

POSITION = "answer:position"  # of a retried row among all answers, from 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Lost:
    """A file of the manifest that is not the one that was written; or that a retry has replaced since."""

    path: str
    said: str  # of it to people
    by_retry: bool = False

    def __str__(self) -> str:
        return self.said


def find_lost(folder: str, manifest: dict[str, Any]) -> list[Lost]:
    """Return the files of a complete run that are gone, torn or newer than its manifest."""
    return list(_find_lost(folder, manifest))


def find_gone(folder: str, manifest: dict[str, Any]) -> list[Lost]:
    """Return those that must be answered again: not what a stopped retry will finish."""
    return [lost for lost in find_lost(folder, manifest) if not lost.by_retry]


def _find_lost(folder: str, manifest: dict[str, Any]) -> Iterator[Lost]:
    retry = find_retry(folder, manifest)
    for file in manifest["files"]:
        try:
            read_stated(folder, file)
        except LostFile as lost:
            by_retry = retry is not None and lost.data is not None and retry.has_put(lost.data, file)
            yield Lost(path=lost.path, said=str(lost), by_retry=by_retry)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outstanding:
    """Holds what a run lacks: units to be answered, so that they become its answers, or the answers of lost files."""

    units: Units
    wanted: list[int]  # done or not
    lost: list[Lost]
    manifest: dict[str, Any] | None  # of a run that was complete

    def said(self) -> str:
        """Return what is said of the files that are lost."""
        lost = "; ".join(map(str, self.lost))
        return f"complete, but lost: {lost}: {len(self.wanted):,} units are answered again"

    def left(self) -> list[int]:
        """Return the units that are not done."""
        done = done_units(self.units.folder)
        return [unit for unit in self.wanted if unit not in done]

    def merge(self, fingerprint: str, timings: dict[str, Any]) -> dict[str, Any]:
        """Make answers of the units, and return the manifest. Raises BrokenUnits."""
        if self.manifest is not None:
            return mend_run(self.units, self.manifest, self.lost)
        return finish_run(self.units, fingerprint, timings)


def find_outstanding(units: Units) -> Outstanding | None:
    """Return what a run lacks, None where it is complete and whole."""
    if (manifest := read_manifest(units.folder)) is None:
        return Outstanding(units=units, wanted=list(range(units.num_units)), lost=[], manifest=None)
    if not (lost := find_gone(units.folder, manifest)):
        return None
    return Outstanding(units=units, wanted=lost_units(units, lost), lost=lost, manifest=manifest)


@dataclass(frozen=True, slots=True, kw_only=True)
class StartedRetry:
    """A retry that has started and not finished. Files that it has written are sealed, with its name and theirs."""

    name: str
    sealed: bool  # whether this release started it

    def has_put(self, data: bytes, file: dict[str, Any]) -> bool:
        """Return whether these bytes are what this retry has replaced a file by, whole."""
        if not self.sealed:
            return bool(_rows_of(data) == file["rows"])
        try:
            check_seal(data)
        except BrokenSeal:
            return False
        return retry_marks(self.name, file["path"]).items() <= marks_of(data).items()


def retry_marks(name: str, path: str) -> dict[str, str]:
    """Return the marks of a file that a retry has written."""
    return {"llava_batch_retry": name, "llava_batch_part": path}


def find_retry(folder: str, manifest: dict[str, Any]) -> StartedRetry | None:
    """Return the retry that has started and not finished, None where there is none."""
    number = len(manifest["retries"]) + 1
    try:
        data = fs.read_bytes(retry_list(folder, number))
    except FileNotFoundError:
        return None
    run = read_run(folder)
    sealed = run is None or has_seals(run) or is_sealed(data)
    return StartedRetry(name=retry_name(manifest["run"], number), sealed=sealed)


def is_retried(folder: str, manifest: dict[str, Any]) -> bool:
    """Return whether a retry has started that has not finished."""
    return fs.exists(retry_list(folder, len(manifest["retries"]) + 1))


def retry_name(run: str, number: int) -> str:
    """Return what a retry's units and files call it."""
    return f"{run}-{number}"


def retry_list(folder: str, number: int) -> str:
    """Return where a retry keeps the rows that it answers again; there before it changes anything."""
    return state_table(folder, f"attempts/retry-{number:04d}")


def lost_units(units: Units, lost: list[Lost]) -> list[int]:
    """Return the units whose answers were in these files."""
    return [unit for part in _parts_of(units, lost).values() for unit in part]


def mend_run(units: Units, manifest: dict[str, Any], lost: list[Lost]) -> dict[str, Any]:
    """Merge the units of the lost files again, and count all answers. Raises BrokenUnits."""
    again, _ = merge_parts(units, _parts_of(units, lost))
    put_back = {file["path"]: file for file in again}
    files = [put_back.get(file["path"], file) for file in manifest["files"]]
    counts = sum((_count(units.folder, file["path"]) for file in files), Counts())
    mended = [
        *manifest.get("mended", []),
        {"files": [file["path"] for file in again], "rows": sum(file["rows"] for file in again)},
    ]
    manifest = {**manifest, **in_manifest(counts), "files": files, "mended": mended}
    manifest.pop("scores", None)  # of the answers as they were
    write_manifest(units.folder, manifest)
    clear_work(units.folder)
    return manifest


def _parts_of(units: Units, lost: list[Lost]) -> dict[str, list[int]]:
    paths = {one.path for one in lost}
    return {path: part for path, part in parts_of(units).items() if path in paths}


_COUNTED = ["status", "error_stage", "error_type", "id", "error_message"]


def _count(folder: str, path: str) -> Counts:
    return sum(map(count_answers, read_tables(fs.join(folder, path), _COUNTED)), Counts())


def _rows_of(data: bytes) -> int | None:
    try:
        return int(pq.ParquetFile(pa.BufferReader(data)).metadata.num_rows)
    except (OSError, pa.ArrowException):
        return None
