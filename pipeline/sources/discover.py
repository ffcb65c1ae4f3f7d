"""Discover: the files that one `--input` names."""

import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice, takewhile

from pipeline.sources.delta import find_delta
from pipeline.sources.finding import DELTA, Found, LeftOut, find_files
from pipeline.sources.formats import KINDS, SUFFIXES, of_one_input
from pipeline.sources.hub_splits import of_split, split_of
from pipeline.sources.lance import find_lance
from pipeline.sources.parquet import PARQUET_SUFFIXES
from pipeline.sources.saved_datasets import own_files
from pipeline.storage import filesystem as fs
from schemas.errors import Refused
from schemas.wording import one_line, printable


def find_input(url: str, output: str | None = None) -> Found:
    """Find the files of any format of a folder, a glob or a single path; raise Refused where there are none.

    What a job writes is not its input: its `output` and other folders of runs are left out where they are below it.
    """
    found, there = _looked_up(url, output)
    if found.is_table:
        return found
    _check_no_delta(url, found)
    wanted = []
    for file in found.files:
        if _is_bookkeeping(fs.spelled(file.url)[len(fs.spelled(found.root)) :]):
            found.left_out.add("that the writer of a table keeps for itself", file.url.rsplit("/", 1)[1])
        else:
            wanted.append(file)
    kept = of_one_input(replace(found, files=tuple(wanted)))
    kept = own_files(kept) if kept.is_folder else kept
    if not kept.files:
        raise Refused(f"--input {url}: {_what_is_there(found.left_out, there=there)}")
    return kept


def _what_is_there(left_out: LeftOut, *, there: bool) -> str:
    if not there and not left_out.counts:
        return "there is nothing of that name"
    others = f"; left out: {left_out}" if left_out.counts else ""
    if any(name.endswith((".lance", ".manifest", ".txn")) for names in left_out.examples.values() for name in names):
        others += "; a Lance table is named by its own folder"
    return f"it holds no {KINDS}; looked for names ending in {', '.join(SUFFIXES)}{others}"


def _looked_up(url: str, output: str | None) -> tuple[Found, bool]:
    """Return all that a name stands for, and whether there is anything of that name."""
    try:
        if output is not None:
            _check_apart(url, output)
        if (table := find_delta(url) or find_lance(url)) is not None:
            return table, True
        folder, split = split_of(url)
        found = find_files(folder, SUFFIXES, output)
        found = found if split is None else of_split(found, split)
        return found, bool(found.files) or fs.exists(folder)
    except fs.UnsupportedScheme as error:
        raise Refused(f"--input {url}: {error}") from error
    except Refused:
        raise
    except (OSError, ValueError) as error:  # ValueError: what is no path at all, with a null character in it
        raise Refused(f"--input {url} cannot be listed: {one_line(error)}") from error


def expand_braces(url: str) -> list[str]:
    """Return the names that `{000..999}` and `{a,b}` in a name stand for; a name that exists is itself."""
    found = _BRACES.search(url)
    if found is None or _exists(url):
        return [url]
    if found[1]:
        ends = found[1], found[2]
        first, last = map(int, ends)
        if not 0 <= last - first < _MOST_NAMES:
            raise Refused(f"--input {url}: {found[0]} must count upwards, and to at most {_MOST_NAMES:,} names")
        width = max(map(len, ends)) if any(one.startswith("0") for one in ends if len(one) > 1) else 0
        parts = [f"{number:0{width}}" for number in range(first, last + 1)]
    else:
        parts = found[3].split(",")
    begin, end = url[: found.start()], url[found.end() :]
    names = [one for part in parts for one in expand_braces(f"{begin}{part}{end}")]
    if len(names) > _MOST_NAMES:
        raise Refused(f"--input {url} must stand for at most {_MOST_NAMES:,} names, it stands for {len(names):,}")
    return names


def _exists(url: str) -> bool:
    try:
        return fs.exists(url)
    except (OSError, ValueError):  # whoever lists it says what is wrong
        return False


_BRACES = re.compile(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}")
_MOST_NAMES = 1_000_000


def _check_no_delta(url: str, found: Found) -> None:
    """Refuse the Parquet files of a Delta table, some of which hold rows that the table has not any more."""
    tables = [found.root] if DELTA in found.left_out.counts else []
    parquet = [file.url for file in found.files if _is_parquet(file.url)]
    if parquet and not tables:
        folders = [found.root] if found.is_folder else [found.root, *(file.rsplit("/", 1)[0] for file in parquet)]
        near = islice(dict.fromkeys(map(_without_partitions, folders)), _LOOKED_AT)
        tables = [folder for folder in near if _exists(fs.join(folder, DELTA))]
    if tables:
        raise Refused(
            f"--input {url}: {printable(tables[0])} has a Delta table, of which Parquet files are not the rows: "
            "name the table's own folder"
        )


def _without_partitions(folder: str) -> str:
    """Return the folder that one of Hive's partitions, as `year=2026/month=1`, is in."""
    while "=" in folder.rsplit("/", 1)[-1]:
        folder = folder.rsplit("/", 1)[0]
    return folder


_LOOKED_AT = 64  # folders of files that are named without their table's folder


def _check_apart(url: str, output: str) -> None:
    """Refuse to read what the job itself writes."""
    if fs.is_local(url) != fs.is_local(output):
        return
    folder, named = fs.real(output), fs.real(url)
    if named == folder:
        raise Refused(f"--output {output} must be another folder than --input {url}, as one named for the answers")
    if any(fs.is_within(named, fs.join(folder, name)) for name in _WRITTEN):
        raise Refused(f"--input {url} must not be what this job writes, it is in --output {output}")


_WRITTEN = (".run", "answers", "units", "attempts", "retry", "markers", "input.parquet")


def common_folder(roots: Sequence[str]) -> str:
    """Return what all roots start with, up to a slash: names below it differ where files of several inputs do."""
    together = takewhile(lambda parts: len(set(parts)) == 1, zip(*(root.split("/") for root in roots), strict=False))
    return "".join(f"{parts[0]}/" for parts in together)


def _is_bookkeeping(below: str) -> bool:
    """Return whether this is in `_temporary/`, a Lance table's `_deletions/` or the like, which the writer of a folder
    keeps for itself."""
    is_table = _is_parquet(below) or below.lower().endswith((".arrow", ".json"))
    return is_table and any(part.startswith("_") for part in below.split("/")[:-1])


def _is_parquet(url: str) -> bool:
    return url.lower().endswith(PARQUET_SUFFIXES)
