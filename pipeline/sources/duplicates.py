"""Duplicates: ids that stand for more than one row. With them `id` and `prompt_id` would be no key of the answers."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.sources.listing import Listing
from pipeline.sources.reader import read_ids
from pipeline.sources.source import RowRange, ranges_of
from schemas.errors import Refused

_FILES_AT_ONCE = 16  # they wait for storage, not for the CPU
_SHOWN = 3  # ids that are named
_SUSPECTS = 1000  # hashes that are looked into to name them


@dataclass(frozen=True, slots=True, kw_only=True)
class Duplicates:
    """Counts the rows that have the id of a row before them; names the first of these with the rows of both."""

    rows: int
    examples: tuple[str, ...]

    def __str__(self) -> str:
        rows = "1 row has the id of another" if self.rows == 1 else f"{self.rows:,} rows have the ids of others"
        return f"{rows}: {', '.join(self.examples)}"


def refuse_duplicate_ids(listing: Listing) -> None:
    """Raise Refused where two rows of a job have one id."""
    found = find_duplicates(listing)
    if found is not None:
        name = listing.columns.id
        raise Refused(
            f"ids must differ, in column {name!r} {found}; set --id-column to another column, or to '' for ids made of "
            f"the file and the row's position (--keep input_id={name} keeps these beside them)"
        )


def find_duplicates(listing: Listing) -> Duplicates | None:
    """Find the rows of a job that share an id. Reads the id column of all files, and holds 8 bytes a row.

    Files that cannot be read now are left out: the job will say so.
    """
    if listing.columns.id is None:
        return None  # made of file and position
    with ThreadPoolExecutor(_FILES_AT_ONCE) as pool:
        hashes = np.concatenate(list(pool.map(lambda file: _hashes_of(listing, file), _files_of(listing))))
    hashes.sort()
    again = hashes[1:] == hashes[:-1]
    if not again.any():
        return None
    examples = _examples(listing, set(np.unique(hashes[1:][again])[:_SUSPECTS].tolist()))
    return Duplicates(rows=int(np.count_nonzero(again)), examples=examples) if examples else None


def _files_of(listing: Listing) -> Iterator[RowRange]:
    """Yield the rows of each file that are in the job."""
    ranges = groupby(ranges_of(listing.row_ranges), key=lambda one: one.url)
    for _, of_file in ranges:
        first, *rest = of_file
        yield replace(
            first,
            num_rows=first.num_rows + sum(one.num_rows for one in rest),
            num_bytes=first.num_bytes + sum(one.num_bytes for one in rest),
        )


def _hashes_of(listing: Listing, file: RowRange) -> npt.NDArray[np.int64]:
    parts = [_hash(ids) for _, ids in _ids_of(listing, file)]
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)


def _ids_of(listing: Listing, file: RowRange) -> Iterator[tuple[int, list[str]]]:
    try:
        for first, ids in read_ids(listing.source, file, listing.columns.ids_alone()):
            yield first, ids.to_pylist()
    except (OSError, pa.ArrowException):
        return


def _hash(ids: list[str]) -> npt.NDArray[np.int64]:
    """Hash ids by Python's own: one in 2e5 jobs of 10,000,000 rows has two ids of one hash, which the examples tell
    apart."""
    return np.fromiter(map(hash, ids), np.int64, len(ids))


def _examples(listing: Listing, suspects: set[int]) -> tuple[str, ...]:
    seen: dict[str, str] = {}  # id -> the row of the first
    found: dict[str, str] = {}
    for file in _files_of(listing):
        for first, ids in _ids_of(listing, file):
            for row, id in enumerate(ids, start=first):
                if hash(id) not in suspects or id in found:
                    continue
                if id in seen:
                    found[id] = f"{id!r} ({seen[id]} and {file.name}:{row})"
                    if len(found) == _SHOWN:
                        return tuple(found.values())
                seen.setdefault(id, f"{file.name}:{row}")
    return tuple(found.values())
