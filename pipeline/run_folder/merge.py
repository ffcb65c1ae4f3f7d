"""Merge: the units of a finished run into answer files of a good size, in order, and the manifest that says complete.

A kill at any point only repeats it: a file of answers depends on nothing but its units, and units go last.
"""

import hashlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa

from pipeline.run_folder.layout import is_earlier, state_path
from pipeline.run_folder.run import FORMAT, RunMismatch, write_manifest
from pipeline.run_folder.units import (
    BrokenUnit,
    Counts,
    OtherColumns,
    count_answers,
    done_units,
    read_unit_answers,
    stream_to_parquet,
)
from pipeline.storage import filesystem as fs

ROWS_A_FILE = 250_000
CARD = "README.md"  # by it `datasets` finds the answers where an earlier release has put the state beside them
_CARD = """---
configs:
- config_name: default
  data_files:
  - split: train
    path: answers/*.parquet
---

The answers of a run of LLaVA-NeXT batch inference are in `answers/`; `run.json` has its settings.
"""
UNITS_AHEAD = 16  # read while the one before is written


class BrokenUnits(RuntimeError):
    """Some units cannot be merged: their files are torn or foreign. They have to be answered again."""

    def __init__(self, units: dict[int, str]) -> None:
        super().__init__(f"{len(units)} broken units: {'; '.join(list(units.values())[:3])}")
        self.units = units


@dataclass(frozen=True, slots=True, kw_only=True)
class Units:
    """The units of a run: where they are, how many, and how many answers each must have."""

    folder: str
    run: str  # the run's name in run.json
    num_units: int
    answers_of: Callable[[int], int]
    rows_a_file: int = ROWS_A_FILE
    schema: pa.Schema | None = None  # of every unit; None takes any
    sealed: bool = True  # whether a unit without a seal is broken

    def read(self, unit: int) -> pa.Table:
        """Return the answers of one unit; raise BrokenUnit."""
        rows = self.answers_of(unit)
        return read_unit_answers(self.folder, self.run, unit, rows, self.schema, sealed=self.sealed)


def check_mergeable(units: Units) -> None:
    """Raise RunMismatch where a unit that is done has other columns than those that are still to be answered."""
    with ThreadPoolExecutor(UNITS_AHEAD) as pool:
        for error in pool.map(partial(_other_columns, units), sorted(done_units(units.folder))):
            if error is not None:
                raise RunMismatch(
                    f"{units.folder} has answers with other columns, which cannot stand in one table with new ones, "
                    f"not even with --continue-with-changes: {error}; choose a new --output"
                )


def _other_columns(units: Units, unit: int) -> OtherColumns | None:
    try:
        units.read(unit)
    except OtherColumns as error:
        return error
    except (BrokenUnit, FileNotFoundError):  # is answered again anyway
        return None
    return None


def finish_run(units: Units, fingerprint: str, timings: dict[str, Any]) -> dict[str, Any]:
    """Merge the units into answers/, write the manifest, remove units/. Raises BrokenUnits."""
    missing = set(range(units.num_units)) - done_units(units.folder)
    if missing:
        raise RuntimeError(f"{len(missing)} of {units.num_units} units are not done, the first is {min(missing)}")
    files, counts = merge_parts(units, parts_of(units))
    manifest = {"format": FORMAT, "run": units.run, "fingerprint": fingerprint, **in_manifest(counts)}
    manifest |= {"files": files, "retries": [], "timings": timings}
    delete_strangers(units.folder, {file["path"] for file in files})
    if is_earlier(units.folder):
        fs.create_new(fs.join(units.folder, CARD), _CARD.encode())
    write_manifest(units.folder, manifest)
    clear_work(units.folder)
    return manifest


def clear_work(folder: str) -> None:
    """Remove what a complete run needs no more."""
    fs.delete(fs.join(folder, "units"))
    fs.delete(state_path(folder, "markers"))


def in_manifest(counts: Counts) -> dict[str, Any]:
    """Return counts as the manifest has them."""
    by_type = [{"stage": one.stage, "type": one.type, "rows": one.rows} for one in counts.by_type]
    return {"rows": counts.rows, "ok": counts.rows - counts.errors, "errors": counts.errors, "errors_by_type": by_type}


def write_answers(folder: str, name: str, data: bytes, rows: int) -> dict[str, Any]:
    """Write one file of answers and return what the manifest says of it."""
    fs.write_atomic(fs.join(folder, name), data)
    return {"path": name, "rows": rows, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def merge_parts(units: Units, parts: dict[str, list[int]]) -> tuple[list[dict[str, Any]], Counts]:
    """Merge units into the file that each of `parts` names; raise BrokenUnits, and then no file after the first."""
    files: list[dict[str, Any]] = []
    broken: dict[int, str] = {}
    counts = Counts()
    for path, part in parts.items():
        tally = _Tally()
        try:
            data = stream_to_parquet(tally.counted(_read_ahead(units, part)))
        except BrokenUnits as error:
            broken |= {**error.units, **_find_broken(units, part)}  # the first may be read whole the second time
            continue
        if not broken:
            files.append(write_answers(units.folder, path, data, tally.counts.rows))
            counts += tally.counts
    if broken:
        raise BrokenUnits(broken)
    return files, counts


def parts_of(units: Units) -> dict[str, list[int]]:
    """Return the files of a complete run, each with its units: consecutive ones of `rows_a_file` answers together."""
    return {f"answers/part-{number:05d}.parquet": part for number, part in enumerate(_parts(units))}


def _parts(units: Units) -> Iterator[list[int]]:
    part, rows = [], 0
    for unit in range(units.num_units):
        part.append(unit)
        rows += units.answers_of(unit)
        if rows >= units.rows_a_file or unit == units.num_units - 1:
            yield part
            part, rows = [], 0


class _Tally:
    """Counts tables as they pass."""

    def __init__(self) -> None:
        self.counts = Counts()

    def counted(self, tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
        for table in tables:
            self.counts += count_answers(table)
            yield table


def _read_ahead(units: Units, numbers: Sequence[int]) -> Iterator[pa.Table]:
    """Yield the units in order, a few of them read before they are asked for; raise BrokenUnits for the first that
    is."""
    with ThreadPoolExecutor(UNITS_AHEAD) as pool:
        reading: deque[tuple[int, Future[pa.Table]]] = deque()
        for number in numbers:
            reading.append((number, pool.submit(units.read, number)))
            if len(reading) >= UNITS_AHEAD:
                yield _whole(*reading.popleft())
        while reading:
            yield _whole(*reading.popleft())


def _whole(number: int, reading: "Future[pa.Table]") -> pa.Table:
    try:
        return reading.result()
    except BrokenUnit as error:
        raise BrokenUnits({number: str(error)}) from error


def check_units(units: Units, numbers: Sequence[int]) -> bool:
    """Return True where all these units are whole; raise BrokenUnits where one is not."""
    if broken := _find_broken(units, numbers):
        raise BrokenUnits(broken)
    return True


def _find_broken(units: Units, numbers: Sequence[int]) -> dict[int, str]:
    broken = {}
    for number in numbers:
        try:
            units.read(number)
        except BrokenUnit as error:
            broken[number] = str(error)
    return broken


def delete_strangers(folder: str, names: set[str]) -> None:
    """Delete files of an earlier merge, which a run that lost units since may have left."""
    for file in fs.list_folder(fs.join(folder, "answers"), (".parquet",)):
        if f"answers/{file.url.rsplit('/', 1)[1]}" not in names:
            fs.delete(file.url)
