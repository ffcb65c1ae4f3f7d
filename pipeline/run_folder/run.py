"""The run folder: what was asked (run.json), and what was there to answer (input.pq).

.run/run.json         first; a run goes on only under the fingerprint in it
.run/input.pq         the input's files as they were listed, to say which of them changed
units/*.parquet       while it runs: one file a finished work unit; a unit is done exactly when its file exists
answers/*.parquet     the units merged, in order
.run/attempts/*.pq    the failed rows that were tried again, as they were before
.run/manifest.json    last; its presence means complete, units/ goes after it
"""

import errno
import hashlib
import json
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, TypeAdapter, ValidationError

from pipeline.run_folder.layout import RUN, check_apart, check_links, state_path, state_table
from pipeline.run_folder.units import BrokenTable, read_sealed, read_table, to_sealed
from pipeline.storage import filesystem as fs
from pipeline.storage.local_files import NotRegular
from schemas.errors import Refused
from schemas.job import KINDS
from schemas.run import STATE, ManifestState, RunState
from schemas.setting_kinds import names_where
from schemas.wording import one_line, printable

T = TypeVar("T")

FORMAT = 2  # of run.json and manifest.json
_MANIFEST = "manifest.json"
_SEAL = "sha256"  # of the rest of a state file
_RESTORE = "put it back as it was"
_OR_REMOVE = f"{_RESTORE}, or remove it: it only says which files of the input have changed"
_SHOWN = 10  # changed input files named in a message
_AT_COMMIT = r"^(hf://datasets/[^/@:]+/[^/@:]+)@[0-9a-f]{40}/"
_NAMED = 8  # of what differs, in the first line of a refusal
# What decides which row an answer stands for: never to be changed in a folder that has answers.
FIXED = names_where(KINDS, lambda kind: kind.fixed) | {"job", "input_rows", "input_layout", "prompt_ids"}


class RunMismatch(Refused):
    """The folder holds a run of other settings or other input; the message lists what differs."""


def begin_run(
    folder: str, description: dict[str, Any], files: pa.Table | None = None, *, continue_with_changes: bool = False
) -> dict[str, Any]:
    """Write run.json, or check that the one there has the same fingerprint; return the run in force.

    `description["identity"]` is what must be the same for a resume, `files` is the input's listing; the rest is for
    people. With `continue_with_changes` differences are recorded instead of refused, but for those in FIXED.
    """
    wanted = _described(description)
    found = read_run(folder)
    if found is None:
        _check_free(folder)
        if files is not None:
            fs.write_atomic(_listing_path(folder), to_sealed(files))
        started = {"run": uuid.uuid4().hex, "begun": _now(), **wanted, "changes": []}
        if fs.create_new(_run_path(folder), _to_json(started)):
            return started
        found = read_run(folder)  # of a driver that has followed this one, which slept since it looked
        assert found is not None
    lines = _compare(folder, found, wanted, files, continue_with_changes=continue_with_changes)
    return found if lines is None else _record_change(folder, found, wanted, lines, files)


def check_run(
    folder: str, description: dict[str, Any], files: pa.Table | None = None, *, continue_with_changes: bool = False
) -> bool:
    """Raise RunMismatch where `begin_run` would; return whether it would record a change. Nothing is written."""
    if (found := read_run(folder)) is None:
        _check_free(folder)
        return False
    wanted = _described(description)
    return _compare(folder, found, wanted, files, continue_with_changes=continue_with_changes) is not None


def read_run(folder: str) -> dict[str, Any] | None:
    """Return the run.json of a folder, None where there is none; raise RunMismatch where it is not what a run wrote."""
    if not folder.strip():
        raise Refused(f"OUT must not be empty, got {folder!r}: is a variable of the shell unset?")
    try:
        check_links(folder)
        path = _run_path(folder)
    except PermissionError as error:
        raise RunMismatch(
            f"{folder} must be a folder that can be read, it cannot be ({one_line(error)}): check its permissions, and "
            "the keys in the environment"
        ) from error
    return _read_state(path, RunState)


def has_seals(run: dict[str, Any]) -> bool:
    """Return whether all units of the run were written with seals."""
    return bool(run.get("units_sealed", True))


def record_found(folder: str, name: str, value: str, *, continue_with_changes: bool = False) -> None:
    """Record what only the cluster could tell, as the precision of `auto`; raise RunMismatch where it was another."""
    run = read_run(folder) or {}
    recorded = run.setdefault("settled", {})
    before = recorded.get(name)
    if before == value:
        return
    if before is not None:
        line = f"  {name}: {before!r} there, {value!r} now"
        if not continue_with_changes:
            raise RunMismatch(_refusal(folder, [line], []))
        run["changes"].append({"at": _now(), "differences": [line.strip()]})
    recorded[name] = value
    fs.write_atomic(_run_path(folder), _to_json(run))


def record_retry(folder: str, number: int, settings: dict[str, Any]) -> None:
    """Note the settings that a retry has instead of the run's; the run itself stays what it was asked."""
    run = read_run(folder)
    assert run is not None
    changes = [change for change in run["changes"] if change.get("retry") != number]  # one that was never started
    if settings or changes != run["changes"]:
        noted = [{"at": _now(), "retry": number, "settings": settings}] if settings else []
        fs.write_atomic(_run_path(folder), _to_json({**run, "changes": [*changes, *noted]}))


def retry_settings(folder: str, number: int) -> dict[str, Any]:
    """Return what `record_retry` has noted of this retry."""
    changes = (read_run(folder) or {"changes": []})["changes"]
    return next((change["settings"] for change in changes if change.get("retry") == number), {})


def is_complete(folder: str, description: dict[str, Any]) -> bool:
    """Return whether the folder holds this very run with its manifest; a look, nothing is written.

    Raises RunMismatch where run.json and manifest.json are not of one run.
    """
    run = read_run(folder)
    same = run is not None and run["fingerprint"] == _described(description)["fingerprint"]
    return same and read_manifest(folder) is not None


def changed_files(folder: str, files: pa.Table | None) -> Iterator[str]:
    """Yield the input files that were added, removed or changed since the run began, the first few by name.

    Raises RunMismatch where the list of those that were there is damaged.
    """
    try:
        before = read_rows(_listing_path(folder), sealed=False, advice=_OR_REMOVE)
    except FileNotFoundError:
        return
    if files is None:
        return
    old, new = map(_with_place, (before, files))
    added = new.filter(pc.invert(pc.is_in(new.column("place"), value_set=old.column("place").combine_chunks())))
    removed = old.filter(pc.invert(pc.is_in(old.column("place"), value_set=new.column("place").combine_chunks())))
    both = new.join(old, "place", right_suffix="_before", join_type="inner")
    same = [pc.equal(both.column(name), both.column(f"{name}_before")) for name in ("size", "version", "num_rows")]
    changed = both.filter(pc.invert(pc.and_(pc.and_(same[0], same[1]), same[2])))
    for what, table in (("added", added), ("removed", removed), ("changed", changed)):
        yield from (
            f"  input file {what}: {printable(url)}" for url in table.column("url").slice(0, _SHOWN).to_pylist()
        )
        if table.num_rows > _SHOWN:
            yield f"  and {table.num_rows - _SHOWN:,} more input files {what}"


def _with_place(files: pa.Table) -> pa.Table:
    """Return what is compared of input files, and where they are at whatever commit: one of another is no new file."""
    compared = files.select(["url", "size", "version", "num_rows"])
    return compared.append_column("place", pc.replace_substring_regex(files.column("url"), _AT_COMMIT, r"\1/"))


def read_rows(path: str, *, sealed: bool, advice: str = _RESTORE) -> pa.Table:
    """Return the rows of a Parquet file that the run keeps for itself; raise RunMismatch where it is damaged.

    `sealed` False also takes one without a seal, as the first release wrote them.
    """
    data = fs.read_bytes(path)
    try:
        return read_sealed(data) if sealed else read_table(data)
    except BrokenTable as error:
        raise RunMismatch(f"{path} is torn or damaged ({error}): {advice}") from error


def fingerprint(identity: dict[str, Any]) -> str:
    """Return the sha256 of what makes two runs the same."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode()).hexdigest()


def read_manifest(folder: str) -> dict[str, Any] | None:
    """Return the manifest of a complete run, None while it is not complete.

    Raises RunMismatch where it is not what a run wrote, or is not of the run in run.json.
    """
    path = _manifest_path(folder)
    manifest = _read_state(path, ManifestState)
    if manifest is None:
        return None
    run = read_run(folder)
    if run is None:
        raise RunMismatch(f"{path} must stand beside the run.json of its run, there is none: {_RESTORE}")
    if manifest["run"] != run["run"] or manifest["fingerprint"] not in _fingerprints(run):
        raise RunMismatch(f"{path} must be of the run in run.json ({run['run']}), it is of another: {_RESTORE}")
    return manifest


def write_manifest(folder: str, manifest: dict[str, Any]) -> None:
    """Write the manifest: from now on the run is complete."""
    fs.write_atomic(_manifest_path(folder), _to_json(manifest))


def _run_path(folder: str) -> str:
    return state_path(folder, RUN)


def _manifest_path(folder: str) -> str:
    return state_path(folder, _MANIFEST)


def _listing_path(folder: str) -> str:
    return state_table(folder, "input")


def _described(description: dict[str, Any]) -> dict[str, Any]:
    """Return the description as it is in JSON, with its fingerprint."""
    described = {"format": FORMAT, "fingerprint": fingerprint(description["identity"]), **description}
    plain: dict[str, Any] = json.loads(json.dumps(described, default=str))
    return plain


def _compare(
    folder: str, found: dict[str, Any], wanted: dict[str, Any], files: pa.Table | None, *, continue_with_changes: bool
) -> list[str] | None:
    """Return what differs, None where it is the same run; raise RunMismatch where that may not be."""
    if found["fingerprint"] == wanted["fingerprint"]:
        return None
    lines = list(differences(found["identity"], wanted["identity"]))
    try:
        lines += changed_files(folder, files)
    except RunMismatch as error:
        lines.append(f"  {error}")
    fixed = sorted({name for name in FIXED if found["identity"].get(name) != wanted["identity"].get(name)})
    if fixed or not continue_with_changes:
        raise RunMismatch(_refusal(folder, lines, fixed))
    return lines


def _record_change(
    folder: str, found: dict[str, Any], wanted: dict[str, Any], lines: list[str], files: pa.Table | None
) -> dict[str, Any]:
    change = {"at": _now(), "differences": [line.strip() for line in lines], "fingerprint_before": found["fingerprint"]}
    changed = {**found, **wanted, "changes": [*found["changes"], change]}
    if files is not None:
        fs.write_atomic(_listing_path(folder), to_sealed(files))
    fs.write_atomic(_run_path(folder), _to_json(changed))
    return changed


def _refusal(folder: str, differences: list[str], fixed: list[str]) -> str:
    names = list(dict.fromkeys(line.strip().split(":")[0] for line in differences))
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    first = f"{folder} holds another run. What differs: {', '.join(names[:_NAMED])}{more}"
    if fixed:
        choice = (
            f"{', '.join(fixed)} cannot change within a folder, not even with --continue-with-changes: "
            "choose a new --output, or go back to the settings and input of that run."
        )
    else:
        choice = (
            "Choose a new --output, go back to the settings and input of that run, or add --continue-with-changes: "
            "what is answered stays as it is, the rest is answered with what is new, and run.json records it."
        )
    return "\n".join([first, *differences, choice])


def differences(found: dict[str, Any], wanted: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield a line for each thing in which two runs differ."""
    for name in sorted(found.keys() | wanted.keys()):
        before, after = found.get(name), wanted.get(name)
        if isinstance(before, dict) and isinstance(after, dict):
            yield from differences(before, after, f"{prefix}{name}.")
        elif before != after:
            yield f"  {prefix}{name}: {before!r} there, {after!r} now"


def _read_state(path: str, kind: type[BaseModel]) -> dict[str, Any] | None:
    """Return what a state file holds, None where there is none; raise RunMismatch for what no run has written."""
    value = _read_json(path, _RESTORE)
    if value is _NOTHING:
        return None
    if not isinstance(value, dict):
        raise RunMismatch(f"{path} must be a JSON object, it is {_kind_of(value)}: {_RESTORE}")
    upgrade = _UPGRADES.get(value["format"]) if type(value.get("format")) is int else None
    if upgrade is not None:
        value = upgrade(path, value)
    else:
        written = "another release wrote it, which reads it" if "format" in value else f"no run wrote it: {_RESTORE}"
        raise RunMismatch(f"{path} must have format {FORMAT}, it has {value.get('format')!r}: {written}")
    _validated(path, value, TypeAdapter(kind), _RESTORE)
    found: dict[str, Any] = value
    return found


def read_record(path: str, kind: TypeAdapter[T], advice: str) -> T | None:
    """Return what a small JSON file holds, None where there is none; raise RunMismatch where it is of another shape."""
    value = _read_json(path, advice)
    return None if value is _NOTHING else _validated(path, value, kind, advice)


_NOTHING = object()  # no file; null is something


def _read_json(path: str, advice: str) -> object:
    try:
        return json.loads(fs.read_bytes(path))
    except (FileNotFoundError, NotADirectoryError):
        return _NOTHING
    except OSError as error:
        if not isinstance(error, PermissionError | NotRegular) and error.errno != errno.ENAMETOOLONG:
            raise  # a disk or a store that fails
        raise RunMismatch(f"{path} must be a file that can be read ({one_line(error)}): {advice}") from error
    except (ValueError, RecursionError) as error:
        raise RunMismatch(f"{path} must be JSON that a run wrote, it is not ({one_line(error)}): {advice}") from error


def _validated(path: str, value: object, kind: TypeAdapter[T], advice: str) -> T:
    try:
        return kind.validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        wrong = error.errors()[0]
        where = ".".join(map(str, wrong["loc"]))
        said = f"{where}: {wrong['msg'].lower()}" if where else wrong["msg"].lower()
        raise RunMismatch(f"{path} is not as a run wrote it ({said}): {advice}") from error


def _unsealed(path: str, value: dict[str, Any]) -> dict[str, Any]:
    """Take the seal off a state file; raise RunMismatch where the rest is not what was sealed."""
    rest = {name: one for name, one in value.items() if name != _SEAL}
    if value.get(_SEAL) != _digest(rest):
        raise RunMismatch(f"{path} is not as a run wrote it (another {_SEAL} than it states): {_RESTORE}")
    return rest


def _from_format_1(path: str, value: dict[str, Any]) -> dict[str, Any]:
    """Return a state file of the first release, which sealed neither state files nor units, in this format."""
    return {**value, "format": FORMAT, "units_sealed": False}


_UPGRADES = {1: _from_format_1, FORMAT: _unsealed}


def _digest(value: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _kind_of(value: object) -> str:
    return "null" if value is None else f"a {type(value).__name__}"


def _fingerprints(run: dict[str, Any]) -> set[str]:
    """Return the fingerprints that the run has had: a retry under changes writes run.json before the manifest."""
    return {run["fingerprint"], *(change.get("fingerprint_before") for change in run["changes"])}


def _check_free(folder: str) -> None:
    """Raise Refused where the folder has answers but no run.json, neither a run to go on with nor a free folder, or is
    a part of another run."""
    check_apart(folder)
    state = (_MANIFEST, "attempts")
    for name in (*state, "answers", "units", *(f"{STATE}/{one}" for one in state)):
        if fs.exists(fs.join(folder, name)):
            raise RunMismatch(
                f"{folder} has {name} and no run.json, so nobody can say whose they are: {_RESTORE}, or choose a new "
                "--output"
            )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _to_json(value: dict[str, Any]) -> bytes:
    """Return a state file: these values, and a seal over them."""
    plain = json.loads(json.dumps(value, default=str))
    return (json.dumps({**plain, _SEAL: _digest(plain)}, indent=2, ensure_ascii=False) + "\n").encode()
