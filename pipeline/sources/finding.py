"""Finding: the files that a user named as a file, a folder with all below it or a glob, and what was left out of them.

A name that exists is that name, whatever characters it has; else `*`, `?`, `[...]` and `**` are patterns. Links are
followed. Every folder is read once, however many links lead to it, so that no loop of links is walked for ever.
"""

import errno
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import translate
from glob import escape
from heapq import heappop, heappush
from typing import Any

import pyarrow as pa
from fsspec import AbstractFileSystem

from pipeline.storage import filesystem as fs
from pipeline.storage.backoff import with_retries
from pipeline.storage.filesystem import FileInfo
from pipeline.storage.store_errors import store_errors
from schemas.errors import Refused
from schemas.run import STATE
from schemas.wording import printable

HIDDEN = "hidden"
OTHER = "of other kinds"
DANGLING = "links to nothing"
TWICE = "links to folders that are listed already"
UNREADABLE = "that cannot be read"
IRREGULAR = "pipes, sockets or devices"
OUTPUT = "folders of runs"
DELTA = "_delta_log"  # the folder that makes others a Delta table
LANCE = "Lance tables, each an input of its own"
_LANCE, _MANIFEST = "_versions", ".manifest"  # the folder that makes others a Lance table, and what is in it
_SHOWN = 3  # names for each reason
_GLOB = re.compile(r"[*?[]")
_GONE = (errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP)
# Where a run's folder has its run.json, and what is beside it: those of earlier releases had it beside the answers.
_OF_A_RUN = ((f"{STATE}/", ("input.pq", "manifest.json")), ("", ("input.parquet", "manifest.json")))


@dataclass(slots=True)
class LeftOut:
    """Counts the names that were left out, for each reason, and shows the first few."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def add(self, why: str, name: str) -> None:
        """Count one more."""
        self.counts[why] += 1
        self._show(why, [name])

    def update(self, other: "LeftOut") -> None:
        """Add what another input left out."""
        self.counts.update(other.counts)
        for why, names in other.examples.items():
            self._show(why, names)

    def _show(self, why: str, names: list[str]) -> None:
        self.examples[why] = [*self.examples.get(why, ()), *names][:_SHOWN]

    def __str__(self) -> str:
        """Return `4 hidden (.a.png, .b.png, .c.png, ...), 1 links to nothing (d.png)`; empty where nothing was."""
        return ", ".join(self._describe(why) for why in sorted(self.counts))

    def _describe(self, why: str) -> str:
        more = ", ..." if self.counts[why] > _SHOWN else ""
        return f"{self.counts[why]:,} {why} ({', '.join(map(printable, self.examples[why]))}{more})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """Holds the files that one name stands for, sorted by path, and the folder that their names are relative to."""

    root: str
    files: tuple[FileInfo, ...]
    left_out: LeftOut = field(default_factory=LeftOut)
    is_folder: bool = False  # it is a folder's name, no file's and no pattern
    is_table: bool = False  # what these files are is said by a table's log, not by their names
    schema: pa.Schema | None = None  # of such a table; None where its files alone say what columns it has


def find_files(url: str, suffixes: tuple[str, ...], output: str | None = None) -> Found:
    """Return the files of a folder (with all below it), of a glob, or the one named; none where nothing is there.

    Only names that end in one of `suffixes` (lower case, any case matches). Names starting with a dot are hidden. The
    job's `output` and other folders of runs below a folder named are left out.
    """
    path = fs.local_path(url)
    if path is not None:
        return with_retries(lambda: _find_local(path, suffixes, output))
    return with_retries(lambda: _find_remote(url, suffixes, output))


def _find_local(path: str, suffixes: tuple[str, ...], output: str | None) -> Found:
    walk = _Walk(suffixes=suffixes, output=_folder_id(output))
    if _GLOB.search(path) and not os.path.lexists(path):
        root, matches = _expand(path)
        for match in matches:
            walk.add(match)
        is_folder = False
    else:
        is_folder = os.path.isdir(path)
        root = path if is_folder else os.path.dirname(path)
        if is_folder:
            os.scandir(path).close()  # one that is named and may not be read is no folder to leave out
        if os.path.lexists(path):
            walk.add(path, named=True)
    files = (walk.files[name] for name in sorted(walk.files))
    return Found(root=fs.as_url(root), files=tuple(files), left_out=walk.left_out, is_folder=is_folder)


def _folder_id(url: str | None) -> tuple[int, int] | None:
    path = fs.local_path(url) if url else None
    try:
        return None if path is None else _id_of(os.stat(path))
    except OSError:  # not there yet
        return None


def _id_of(status: os.stat_result) -> tuple[int, int]:
    return (status.st_dev, status.st_ino)


@dataclass(slots=True, kw_only=True)
class _Walk:
    """Files on this machine by path. Folders are read by their own names first, then by those of links to them."""

    suffixes: tuple[str, ...]
    output: tuple[int, int] | None
    files: dict[str, FileInfo] = field(default_factory=dict)
    left_out: LeftOut = field(default_factory=LeftOut)
    read: set[tuple[int, int]] = field(default_factory=set)  # device and inode of each folder read
    names: set[str] = field(default_factory=set)  # that they were read by

    def add(self, path: str, *, named: bool = False) -> None:
        """Add a file, or a folder with all below it; only one that the user named may be a run's."""
        if not os.path.isdir(path):
            with self._unless_gone(path):
                self._file(path, os.path.isfile(path))
            return
        folders, links = [path], list[str]()  # links: the first in order goes first
        while folders or links:
            folder = folders.pop() if folders else heappop(links)
            if self._enter(folder, named=named and folder == path):
                with self._unless_gone(folder):
                    self._read(folder, folders, links)

    @contextmanager
    def _unless_gone(self, path: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno not in _GONE:
                raise
            self.left_out.add(UNREADABLE, _shown(path))

    def _enter(self, folder: str, *, named: bool) -> bool:
        """Return whether a folder is to be read, and not read already or a run's."""
        if folder in self.names:  # by a second match of the same glob
            return False
        try:
            id = _id_of(os.stat(folder))
        except OSError:
            self.left_out.add(UNREADABLE, _shown(folder))
            return False
        if id in self.read:
            self.left_out.add(TWICE, _shown(folder))
            return False
        if not named and (id == self.output or _is_run(folder)):
            self.left_out.add(OUTPUT, _shown(folder))
            return False
        if not named and _is_lance(folder):
            self.left_out.add(LANCE, _shown(folder))
            return False
        self.read.add(id)
        self.names.add(folder)
        return True

    def _read(self, folder: str, folders: list[str], links: list[str]) -> None:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    self.left_out.add(HIDDEN, entry.name)
                elif entry.name == DELTA:
                    self.left_out.add(DELTA, _shown(folder))
                elif entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
                else:
                    with self._unless_gone(entry.path):
                        self._entry(entry, links)

    def _entry(self, entry: os.DirEntry[str], links: list[str]) -> None:
        if not entry.is_symlink():
            self._file(entry.path, entry.is_file(follow_symlinks=False))
        elif os.path.isdir(entry.path):
            heappush(links, entry.path)
        else:
            self._file(entry.path, os.path.isfile(entry.path))

    def _file(self, path: str, is_file: bool) -> None:
        if not is_file:
            self.left_out.add(IRREGULAR if os.path.exists(path) else DANGLING, _shown(path))
        elif path.lower().endswith(self.suffixes):
            self.files[path] = fs.local_info(path, os.stat(path))
        else:
            self.left_out.add(OTHER, _shown(path))


def _shown(path: str) -> str:
    return os.path.basename(fs.spelled(fs.as_url(path)))


def _is_run(folder: str) -> bool:
    return any(
        os.path.isfile(os.path.join(folder, f"{kept}run.json"))
        and any(os.path.exists(os.path.join(folder, f"{kept}{name}")) for name in names)
        for kept, names in _OF_A_RUN
    )


def _is_lance(folder: str) -> bool:
    try:
        return any(name.endswith(_MANIFEST) for name in os.listdir(os.path.join(folder, _LANCE)))
    except OSError:
        return False


def _expand(pattern: str) -> tuple[str, list[str]]:
    """Return the folder above the first part that is a pattern, and the paths that match all of it."""
    root, matched, literal = "/", ["/"], True
    parts = pattern.strip("/").split("/")
    for number, part in enumerate(parts):
        if literal and (not _GLOB.search(part) or os.path.lexists(os.path.join(root, part))):
            root = os.path.join(root, part)
            matched = [root]
            continue
        literal = False
        _check_pattern(pattern, part)
        if part == "**" and number == len(parts) - 1:
            break  # a folder stands for all below it
        matches = (_folders_below(path) if part == "**" else _match(path, part) for path in matched)
        matched = [match for some in matches for match in some]
    return root, sorted({path for path in matched if os.path.lexists(path)})


def _check_pattern(pattern: str, part: str) -> None:
    if "**" in part and part != "**":
        raise Refused(f"--input {pattern}: ** must stand alone between slashes, as in folder/**/*.jpg")


def _match(folder: str, part: str) -> Iterator[str]:
    if not _GLOB.search(part):
        names = [part] if os.path.lexists(os.path.join(folder, part)) else []
    else:
        matches = re.compile(translate(part)).match
        try:
            names = [name for name in os.listdir(folder) if matches(name) and _is_open(name, part)]
        except OSError as error:
            if error.errno not in _GONE:
                raise
            names = []
    yield from (os.path.join(folder, name) for name in names)


def _is_open(name: str, part: str) -> bool:
    return part.startswith(".") or not name.startswith(".")


def _folders_below(folder: str) -> Iterator[str]:
    """Yield the folder and all below it; links to folders are not followed."""
    folders = [folder]
    while folders:
        yield (folder := folders.pop())
        folders += [one for one in _match(folder, "*") if os.path.isdir(one) and not os.path.islink(one)]


def _find_remote(url: str, suffixes: tuple[str, ...], output: str | None) -> Found:
    filesystem, key = fs.remote(url)
    filesystem.invalidate_cache()
    with store_errors(url):
        root, matches = _matches(filesystem, key)
        chosen = _Chosen(suffixes=suffixes, output=_key_of(filesystem, output))
        for match in matches:
            if match["type"] == "directory":
                chosen.add(fs.find_below(url, filesystem, match["name"]), match["name"].rstrip("/"))
            else:
                chosen.add([match], os.path.dirname(match["name"]))
    files = {name: fs.file_info(filesystem, chosen.entries[name]) for name in sorted(chosen.entries)}
    is_folder = [match["name"].rstrip("/") for match in matches] == [root.rstrip("/")]
    root = str(filesystem.unstrip_protocol(root)).rstrip("/")
    return Found(root=root, files=tuple(files.values()), left_out=chosen.left_out, is_folder=is_folder)


def _key_of(filesystem: AbstractFileSystem, output: str | None) -> str | None:
    """Return the output's key where it is in this store."""
    if output is None or fs.is_local(output):
        return None
    other, key = fs.remote(output)
    return key if other.protocol == filesystem.protocol else None


def _matches(filesystem: AbstractFileSystem, key: str) -> tuple[str, list[dict[str, Any]]]:
    """Return the folder that names are relative to, and what a store says of every match."""
    try:
        info = filesystem.info(key)
    except FileNotFoundError as error:
        if hasattr(error.__cause__, "repo_type"):  # the hub has no such repository or revision
            raise
    else:
        return (key if info["type"] == "directory" else os.path.dirname(key)), [info]
    if not _GLOB.search(key):
        return os.path.dirname(key), []
    root, rest = "", key.split("/")
    while rest and (not _GLOB.search(rest[0]) or (root and filesystem.exists(f"{root}/{rest[0]}"))):
        root = f"{root}/{rest.pop(0)}" if root else rest.pop(0)
    for part in rest:
        _check_pattern(key, part)
    if not rest:  # all of it is literal, and not there
        return os.path.dirname(key), []
    return root, list(filesystem.glob("/".join([escape(root), *rest]), detail=True).values())


@dataclass(slots=True, kw_only=True)
class _Chosen:
    """Files of a store by key."""

    suffixes: tuple[str, ...]
    output: str | None
    entries: dict[str, dict[str, Any]] = field(default_factory=dict)
    left_out: LeftOut = field(default_factory=LeftOut)

    def add(self, entries: Iterable[dict[str, Any]], root: str) -> None:
        """Add what is below `root`."""
        entries = list(entries)
        names = [entry["name"] for entry in entries]
        others = {**dict.fromkeys(_lance_in(names), LANCE), **dict.fromkeys(_runs_in(names, root), OUTPUT)}
        if self.output is not None and self.output.startswith(f"{root}/"):
            others[self.output] = OUTPUT
        if root in others:
            self.left_out.add(others[root], os.path.basename(root))
            return
        inside = set[str]()
        for name, entry in zip(names, entries, strict=True):
            other = next((folder for folder in _folders_of(name, root) if folder in others), None) if others else None
            if other is not None:
                inside.add(other)
            elif name not in self.entries:
                self._file(name, entry, root)
        for other in sorted(inside):
            self.left_out.add(others[other], os.path.basename(other))

    def _file(self, name: str, entry: dict[str, Any], root: str) -> None:
        below = name[len(root) :].split("/")
        if DELTA in below[:-1]:
            self.left_out.add(DELTA, os.path.basename(root))
        elif any(part.startswith(".") for part in below):
            self.left_out.add(HIDDEN, below[-1])
        elif name.lower().endswith(self.suffixes):
            self.entries[name] = entry
        elif not name.endswith("/"):  # what consoles put where a folder is to be
            self.left_out.add(OTHER, below[-1])


def _folders_of(name: str, root: str) -> Iterator[str]:
    """Yield the folders that a key is in, below `root`, the outermost first."""
    end = name.find("/", len(root) + 1)
    while end >= 0:
        yield name[:end]
        end = name.find("/", end + 1)


def _runs_in(names: list[str], root: str) -> set[str]:
    """Return the folders of runs below `root`."""
    runs: set[str] = set()
    for kept, beside in _OF_A_RUN:
        parents, known = _holding(names, f"/{kept}run.json"), [_holding(names, f"/{kept}{name}") for name in beside]
        runs |= parents & set().union(*known)
    return runs - {root}


def _lance_in(names: list[str]) -> set[str]:
    """Return the folders that are Lance tables, `root` too."""
    versions = {name.rpartition("/")[0] for name in names if name.endswith(_MANIFEST)}
    return {one.removesuffix(f"/{_LANCE}") for one in versions if one.endswith(f"/{_LANCE}")}


def _holding(names: list[str], end: str) -> set[str]:
    """Return the folders of which one of these names ends so."""
    return {name.removesuffix(end) for name in names if name.endswith(end)}
