"""Delta: the Parquet files that a Delta table has at one version, by its own log, never those that lie in its folder.

`folder` is the table at its newest version, `folder@3` at version 3.
"""

import importlib
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any
from urllib.parse import unquote

import pyarrow as pa

from pipeline.sources.finding import DELTA, Found, LeftOut, find_files
from pipeline.sources.parquet import PARQUET_SUFFIXES, partitions_of
from pipeline.storage import filesystem as fs
from schemas.errors import Refused
from schemas.packages import install_line
from schemas.wording import one_line, printable

_VERSION = re.compile(r"(.*[^/@])/?@(\d{1,18})", re.DOTALL)
_COMMIT = re.compile(r"/(\d{20})\.(?:json|checkpoint\.)")
_READABLE = {"timestampNtz", "v2Checkpoint", "vacuumProtocolCheck"}  # features that change no row of a Parquet file
_LOG_FILE = re.compile(
    r"(?P<version>\d{20})\.(?:json|(?P<checkpoint>checkpoint)(?:\.\d{10}\.(?P<parts>\d{10})|\.[0-9a-f-]{36})?\.\w+)"
)
_AT_ONCE = 16  # files of a log
_NO_TABLES = ("http", "https", "data", "hf")


def split_version(url: str) -> tuple[str, int | None]:
    """Return the folder of a table and the version that is named, None where none is."""
    found = _VERSION.fullmatch(url)
    return (found[1], int(found[2])) if found else (url, None)


def newest_version(url: str) -> int | None:
    """Return the newest version of the table in a folder, None where there is no table, or where one is named."""
    if not is_table(url):
        return None
    names = (file.url for file in fs.list_folder(fs.join(url, DELTA)))
    return max((int(found[1]) for found in map(_COMMIT.search, names) if found), default=None)


def find_delta(url: str) -> Found | None:
    """Return the files of the Delta table that is named, None where none is; raise Refused for one that has others."""
    folder, version = url, newest_version(url)
    if version is None:  # a folder of that very name comes first
        folder, version = split_version(url)
        if version is None or not is_table(folder):
            return None
    with _opened(url, folder, version) as table:
        _check_readable(url, table)
        partitions, schema = list(table.metadata().partition_columns), pa.schema(table.schema())
        paths = [unquote(path) for path in _paths(table)]
    there = {file.url: file for file in find_files(folder, PARQUET_SUFFIXES).files}
    urls = [fs.join(fs.absolute(folder), path) for path in paths]
    for path, one in zip(paths, urls, strict=True):
        if one not in there:
            raise Refused(
                f"--input {url}: the table's log names {printable(path)}, which is not there: was it vacuumed?"
            )
        if missing := set(partitions) - partitions_of(one).keys():
            raise Refused(
                f"--input {url}: the path {printable(path)} must have the partition {min(missing)}=, it has not"
            )
    left_out = LeftOut()
    for one in there.keys() - set(urls):
        left_out.add(f"not in version {version} of the table", one.rsplit("/", 1)[1])
    files = tuple(there[one] for one in sorted(urls))
    return Found(root=fs.absolute(folder), files=files, left_out=left_out, is_table=True, schema=schema)


def is_table(url: str) -> bool:
    """Return whether a folder is a table's own."""
    try:
        return fs.scheme_of(url) not in _NO_TABLES and fs.exists(fs.join(url, DELTA))
    except (OSError, ValueError):  # whoever lists it says what is wrong
        return False


@contextmanager
def _opened(url: str, folder: str, version: int) -> Iterator[Any]:
    """Open a table by its log alone. Of one in a store what is needed is copied: how the store is reached is then said
    in one place."""
    try:
        library = importlib.import_module("deltalake")
    except ImportError as error:
        raise Refused(
            f"--input {url} has a Delta table, of which Parquet files are not the rows: to read it, "
            f"{install_line('delta')}"
        ) from error
    with tempfile.TemporaryDirectory() as copy:
        path = fs.local_path(folder)
        if path is None:
            path = copy
            _copy_log(fs.join(folder, DELTA), os.path.join(copy, DELTA), version)
        try:
            yield library.DeltaTable(path, version=version)
        except library.exceptions.DeltaError as error:
            raise Refused(f"--input {url} cannot be read as a Delta table: {one_line(error)}") from error


def _copy_log(source: str, target: str, version: int) -> None:
    """Copy what tells one version of the files of a log."""
    urls = {file.url[len(fs.absolute(source)) :].strip("/"): file.url for file in fs.list_folder(source)}

    def copy(name: str) -> None:
        path = os.path.join(target, *name.split("/"))
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(fs.read_bytes(urls[name]))

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        list(pool.map(copy, needed_of(urls, version)))


def needed_of(names: Iterable[str], version: int) -> list[str]:
    """Return which files of a log tell a version: its last checkpoint that is whole, and all commits since."""
    commits: dict[int, str] = {}
    checkpoints: dict[int, list[re.Match[str]]] = {}
    for found in filter(None, map(_LOG_FILE.fullmatch, names)):
        number = int(found["version"])
        if number <= version and found["checkpoint"] is None:
            commits[number] = found[0]
        elif number <= version:
            checkpoints.setdefault(number, []).append(found)
    whole = [number for number, files in checkpoints.items() if _is_whole(files)]
    first = max(whole, default=-1)
    needed = [name for number, name in commits.items() if number >= first]
    needed += [file[0] for file in checkpoints.get(first, ())]
    return sorted([*needed, *(name for name in names if name.startswith("_sidecars/"))])


def _is_whole(files: Sequence[re.Match[str]]) -> bool:
    """Return whether a checkpoint has all its parts."""
    return any(file["parts"] is None for file in files) or len(files) >= int(files[0]["parts"])


def _check_readable(url: str, table: Any) -> None:  # noqa: ANN401  a library that is not always there
    """Refuse a table whose Parquet files hold rows or columns that are not the table's."""
    protocol, settings = table.protocol(), table.metadata().configuration
    features = set(protocol.reader_features or ()) - _READABLE
    mapping = settings.get("delta.columnMapping.mode", "none")
    if mapping != "none" or features or protocol.min_reader_version not in (1, 3):
        needed = ", ".join(sorted(features)) or f"column mapping by {mapping}"
        raise Refused(f"--input {url} needs {needed}, which its Parquet files alone do not tell: write the table anew")


def _paths(table: Any) -> list[str]:  # noqa: ANN401
    actions = table.get_add_actions(flatten=True)
    column = actions.column("path") if hasattr(actions, "column") else actions["path"]
    return [str(path) for path in column.to_pylist()]
