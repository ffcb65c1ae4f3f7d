"""The run folder: what was asked (run.json), what is done (units/), the answers, and the manifest that means complete.

run.json            first; a run resumes only under the fingerprint in it
units/*.parquet     one file a finished work unit; a unit is done exactly when its file exists
answers/*.parquet   the units merged, in order
manifest.json       last; once it is there units/ goes
"""

import hashlib
import io
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline import storage

FORMAT = 1  # of run.json and manifest.json
ROWS_A_FILE = 250_000
ROWS_A_GROUP = 10_000


class RunMismatch(ValueError):
    """The folder holds a run of other settings or other input; the message lists what differs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """Answer rows by status, and errors by (stage, type)."""

    rows: int = 0
    errors: int = 0
    by_type: tuple[tuple[str, str, int], ...] = ()

    def __add__(self, other: "Counts") -> "Counts":
        types = Counter({(stage, kind): count for stage, kind, count in self.by_type})
        types.update({(stage, kind): count for stage, kind, count in other.by_type})
        by_type = tuple((stage, kind, count) for (stage, kind), count in sorted(types.items()))
        return Counts(rows=self.rows + other.rows, errors=self.errors + other.errors, by_type=by_type)


def count_answers(answers: pa.Table) -> Counts:
    """The counts of one table of answers."""
    failed = answers.filter(pc.equal(answers.column("status"), "error"))
    types = Counter(zip(failed.column("error_stage").to_pylist(), failed.column("error_type").to_pylist(), strict=True))
    by_type = tuple((stage, kind, count) for (stage, kind), count in sorted(types.items()))
    return Counts(rows=answers.num_rows, errors=failed.num_rows, by_type=by_type)


def begin_run(folder: str, description: dict[str, Any]) -> dict[str, Any]:
    """Write run.json, or check that the one in place has the same fingerprint; returns the description in force.

    `description["identity"]` is what must be the same for a resume; the rest is for people. Raises RunMismatch.
    """
    path = storage.join(folder, "run.json")
    wanted = {"format": FORMAT, "fingerprint": fingerprint(description["identity"]), **description}
    if not storage.exists(path):
        storage.write_atomic(path, _to_json(wanted))
        return wanted
    found: dict[str, Any] = json.loads(storage.read_bytes(path))
    if found["fingerprint"] != wanted["fingerprint"]:
        differences = "\n".join(_differences(found["identity"], json.loads(_to_json(wanted["identity"]))))
        raise RunMismatch(
            f"{folder} holds another run; resume it with its own settings or choose a new --output.\n{differences}"
        )
    return found


def fingerprint(identity: dict[str, Any]) -> str:
    """The sha256 of what makes two runs the same."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode()).hexdigest()


def unit_path(folder: str, unit: int) -> str:
    """Where the answers of a unit are put, at once and whole."""
    return storage.join(folder, "units", f"unit-{unit:08d}.parquet")


def write_unit(folder: str, unit: int, answers: pa.Table) -> None:
    """Put a unit's answers in place; writing them again changes nothing."""
    storage.write_atomic(unit_path(folder, unit), to_parquet([answers], answers.schema))


def done_units(folder: str) -> set[int]:
    """The numbers of the units whose files exist."""
    files = storage.list_files(storage.join(folder, "units"), (".parquet",))
    names = (re.search(r"unit-(\d+)\.parquet$", file.url) for file in files)
    return {int(name[1]) for name in names if name}


def read_manifest(folder: str) -> dict[str, Any] | None:
    """The manifest of a complete run, None while it is not complete."""
    path = storage.join(folder, "manifest.json")
    if not storage.exists(path):
        return None
    manifest: dict[str, Any] = json.loads(storage.read_bytes(path))
    return manifest


def finish_run(folder: str, num_units: int, timings: dict[str, float]) -> dict[str, Any]:
    """Merge the units into answers/, write the manifest, remove units/; a kill at any point only repeats this."""
    missing = set(range(num_units)) - done_units(folder)
    if missing:
        raise RuntimeError(f"{len(missing)} of {num_units} units are not done, the first is {min(missing)}")
    files, counts = [], Counts()
    for number, (tables, schema) in enumerate(_groups_of_units(folder, num_units)):
        name = f"answers/part-{number:05d}.parquet"
        data = to_parquet(tables, schema)
        storage.write_atomic(storage.join(folder, name), data)
        part = sum((count_answers(table) for table in tables), Counts())
        files.append({"path": name, "rows": part.rows, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()})
        counts += part
    manifest = {
        "format": FORMAT,
        "fingerprint": json.loads(storage.read_bytes(storage.join(folder, "run.json")))["fingerprint"],
        "rows": counts.rows,
        "ok": counts.rows - counts.errors,
        "errors": counts.errors,
        "errors_by_type": [{"stage": stage, "type": kind, "rows": rows} for stage, kind, rows in counts.by_type],
        "files": files,
        "timings": timings,
    }
    storage.write_atomic(storage.join(folder, "manifest.json"), _to_json(manifest))
    storage.delete(storage.join(folder, "units"))
    return manifest


def to_parquet(tables: Sequence[pa.Table], schema: pa.Schema) -> bytes:
    """One Parquet file of these tables: zstd, row groups that a viewer can open."""
    buffer = io.BytesIO()
    with pq.ParquetWriter(buffer, schema, compression="zstd") as writer:
        writer.write_table(pa.concat_tables(tables), row_group_size=ROWS_A_GROUP)
    return buffer.getvalue()


def _groups_of_units(folder: str, num_units: int) -> Iterator[tuple[list[pa.Table], pa.Schema]]:
    group: list[pa.Table] = []
    for unit in range(num_units):
        group.append(pq.read_table(pa.BufferReader(storage.read_bytes(unit_path(folder, unit)))))
        if sum(table.num_rows for table in group) >= ROWS_A_FILE or unit == num_units - 1:
            yield group, group[0].schema
            group = []


def _differences(found: dict[str, Any], wanted: dict[str, Any]) -> Iterator[str]:
    for name in sorted(found.keys() | wanted.keys()):
        if found.get(name) != wanted.get(name):
            yield f"  {name}: {found.get(name)!r} there, {wanted.get(name)!r} now"


def _to_json(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n").encode()
