"""Saved datasets: the Arrow files that Hugging Face's `save_to_disk` writes, streams of record batches."""

import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import groupby
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyarrow import types

from pipeline.sources.columns import Columns
from pipeline.sources.convention import CONVENTION, Convention
from pipeline.sources.finding import Found
from pipeline.sources.source import FileRows, RowIndex, RowRange, Rows, Unread
from pipeline.sources.streams import opened
from pipeline.sources.unreadable import why_unread
from pipeline.storage import filesystem as fs
from pipeline.storage.filesystem import FileInfo
from schemas.errors import Refused
from schemas.wording import one_line, printable

_AT_ONCE = 8  # files indexed
SUFFIX = ".arrow"


@dataclass(frozen=True, slots=True)
class SavedDatasets:
    """Arrow streams. A range is read from the batch that its first row is in, `line` rows before it."""

    name: str = "Arrow"
    is_table: bool = True
    convention: Convention = CONVENTION

    def list(self, files: Sequence[FileInfo], limit: int | None) -> list[FileRows]:
        """Find the record batches of all files."""
        for folder in dict.fromkeys(file.url.rsplit("/", 1)[0] for file in files):
            _check_state(folder)
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            return list(pool.map(_index, files))

    def read(self, row_ranges: Sequence[RowRange], columns: Columns) -> Iterator[Rows | Unread]:
        """Yield the rows."""
        for row_range in row_ranges:
            try:
                yield from list(_rows_of(row_range, columns.used()))
            except (OSError, pa.ArrowException) as error:
                if isinstance(error, MemoryError):  # no row's fault
                    raise
                yield Unread(row_range=row_range, failure=why_unread(row_range, error))

    def read_ids(self, row_range: RowRange, columns: Columns) -> Iterator[Rows]:
        """Yield the ids batch by batch."""
        if columns.id is None:
            yield Rows(row_range=row_range, batch=pa.RecordBatch.from_pydict({}))
            return
        yield from _rows_of(row_range, [columns.id])


def own_files(found: Found) -> Found:
    """Return what was found of a folder without the Arrow files that are none of the datasets in it, as those of an
    earlier save or a cache, which are counted; raise Refused where one of a dataset's own is not there."""
    arrow = [file.url for file in found.files if file.url.lower().endswith(SUFFIX)]
    others = set[str]()
    for folder, urls in groupby(sorted(arrow), key=lambda url: url.rsplit("/", 1)[0]):
        named, there = _named_files(folder), {url.rsplit("/", 1)[1]: url for url in urls}
        if missing := named - there.keys():
            rule = "must have the files that its state.json names"
            raise Refused(f"--input {printable(folder)} {rule}, {min(missing)!r} is not there")
        others |= {url for name, url in there.items() if named and name not in named}
    for url in sorted(others):
        found.left_out.add("that the saved dataset beside them does not name", url.rsplit("/", 1)[1])
    return replace(found, files=tuple(file for file in found.files if file.url not in others))


def _named_files(folder: str) -> set[str]:
    files = _state_of(folder).get("_data_files")
    names = (one.get("filename") for one in files if isinstance(one, dict)) if isinstance(files, list) else ()
    return {name.rsplit("/", 1)[-1] for name in names if isinstance(name, str)}


def _state_of(folder: str) -> Mapping[str, Any]:
    """Return what a dataset's `state.json` says; nothing where it is no dataset's."""
    try:
        state = json.loads(fs.read_bytes(fs.join(folder, "state.json")))
    except (FileNotFoundError, ValueError):
        return {}
    except OSError as error:
        raise Refused(f"--input {printable(folder)} has a state.json that cannot be read: {one_line(error)}") from error
    return state if isinstance(state, dict) else {}


def _check_state(folder: str) -> None:
    """Refuse a dataset whose rows are others than those of its files, in order."""
    if _state_of(folder).get("_indices_files"):
        raise Refused(
            f"--input {printable(folder)} has its rows chosen or ordered by another file: "
            "save it anew after dataset.flatten_indices()"
        )


def _index(file: FileInfo) -> FileRows:
    try:
        with opened(file.url) as content:
            schema = pa.ipc.read_schema(content)
            _check_schema(schema, file.url)
            offsets, counts = _batches(content, schema)
    except (OSError, pa.ArrowException, EOFError) as error:
        raise Refused(f"{printable(file.url)} cannot be read as an Arrow stream: {one_line(error)}") from error
    starts, num_rows = np.repeat(offsets, counts), int(counts.sum())
    within = np.arange(num_rows) - np.repeat(np.cumsum(counts) - counts, counts)
    index = RowIndex(offsets=np.append(starts, file.size).astype(np.int64), lines=within.astype(np.int64))
    return FileRows(url=file.url, num_rows=num_rows, schema=schema.remove_metadata(), index=index)


def _check_schema(schema: pa.Schema, url: str) -> None:
    for column in schema:
        if types.is_dictionary(column.type):
            raise Refused(f"{printable(url)}: column {column.name!r} of {column.type} cannot be read: save it as text")


def _batches(file: IO[bytes], schema: pa.Schema) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return where each record batch begins, and how many rows it has."""
    offsets, counts = [], []
    while True:
        offset = file.tell()
        try:
            message = pa.ipc.read_message(file)
        except EOFError:
            break
        if message is None:
            break
        offsets.append(offset)
        counts.append(pa.ipc.read_record_batch(message, schema).num_rows)
    if file.read(1):
        raise OSError("something follows behind the stream's end, maybe another one: give each a file of its own")
    return np.array(offsets, np.int64), np.array(counts, np.int64)


def _rows_of(row_range: RowRange, names: Sequence[str]) -> Iterator[Rows]:
    with opened(row_range.url) as file:
        schema = pa.ipc.read_schema(file)
    missing = set(names) - set(schema.names)
    if missing:
        raise OSError(f"the file must have a column {min(missing)!r} as when listed, it has none")
    done, skip = 0, row_range.line
    with opened(row_range.url, row_range.offset) as file:
        while done < row_range.num_rows:
            try:
                batch = pa.ipc.read_record_batch(pa.ipc.read_message(file), schema)
            except EOFError as error:
                there = f"it has {row_range.start + done}"
                raise OSError(f"the file must have its rows where they were when listed, {there}") from error
            part = batch.slice(skip, row_range.num_rows - done).select(list(names))
            skip -= min(skip, batch.num_rows)
            num_rows = min(batch.num_rows, part.num_rows)
            if num_rows:
                yield Rows(row_range=row_range.part(done, num_rows), batch=part)
            done += num_rows
