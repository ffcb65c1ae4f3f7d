"""Leftovers: what processes that were killed have left half written, removed by the next driver that has the folder.

Only names that this project gives to halves of its own files, in the folders where it writes them, are touched.
"""

import contextlib
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

from fsspec import AbstractFileSystem

from pipeline.run_folder.layout import state_folder
from pipeline.run_folder.lock import NAME
from pipeline.storage import filesystem as fs
from pipeline.storage.store_errors import store_errors
from schemas.run import STATE

_HALF = r"(?:\.[0-9a-f]{32}\.tmp)+"  # behind the name of the whole, see local_files
_UNIT = r"unit-[0-9]{8,}\.(?:parquet|pq)"
_ANSWERS = {"units": _UNIT, "answers": r"part-[0-9]{5,}\.parquet"}  # folder -> names of its files
_STATE = {
    "": r"README\.md|events\.jsonl|report\.html|run\.json|manifest\.json|(?:input|index|scores)\.(?:parquet|pq)",
    "attempts": r"retry-[0-9]{4,}\.(?:parquet|pq)",
    "markers": r"[\w.-]+\.json",
    "errors": r"[\w.-]+\.txt",
    "retry/units": _UNIT,
}
_OF_A_RUN = {**_ANSWERS, **_STATE, **{f"{STATE}/{name}".rstrip("/"): files for name, files in _STATE.items()}}
_OF_A_SWEEP = {"": r"results\.(?:parquet|md|html)|timings\.json"}
_LOCK_S = 60.0  # another driver that is refused writes one too, and needs it for a moment


def remove_leftovers(folder: str) -> int:
    """Remove what killed drivers and workers of a run have left half written; return how many there were.

    To be called by the driver that holds the folder.
    """
    return _remove(folder, _OF_A_RUN)


def remove_sweeps_leftovers(folder: str) -> int:
    """Remove the same of a sweep's own files."""
    return _remove(folder, _OF_A_SWEEP)


def _remove(folder: str, names: Mapping[str, str]) -> int:
    path = fs.local_path(folder)
    if path is None:
        return _abort_uploads(folder, names)
    halves = [*_local(path, names), *_locks(fs.local_path(state_folder(folder)) or path)]
    for half in halves:
        with contextlib.suppress(OSError):  # what cannot be removed is in nobody's way
            os.unlink(half)
    return len(halves)


def _local(path: str, names: Mapping[str, str]) -> Iterator[str]:
    for below, pattern in names.items():
        yield from (entry.path for entry in _files(os.path.join(path, below)) if _is_half(entry.name, pattern))


def _is_half(name: str, pattern: str) -> bool:
    return re.fullmatch(rf"\.?(?:{pattern}){_HALF}", name) is not None


def _locks(path: str) -> Iterator[str]:
    """Yield halves of locks that are older than ours by more than anyone takes to write one."""
    with contextlib.suppress(FileNotFoundError):
        now = os.stat(os.path.join(path, NAME)).st_mtime
        for entry in _files(path):
            if _is_half(entry.name, re.escape(NAME)) and now - entry.stat(follow_symlinks=False).st_mtime > _LOCK_S:
                yield entry.path


def _files(path: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(path) as entries:
            return [entry for entry in entries if entry.is_file(follow_symlinks=False)]
    except (FileNotFoundError, NotADirectoryError):
        return []


def _abort_uploads(folder: str, names: Mapping[str, str]) -> int:
    """Abort uploads that were started and not completed, which S3 keeps out of sight, and bills."""
    filesystem, key = fs.remote(folder)
    if "s3" not in filesystem.protocol:  # elsewhere they end by themselves
        return 0
    bucket, prefix, _ = filesystem.split_path(f"{key.rstrip('/')}/")
    aborted = 0
    with contextlib.suppress(OSError), store_errors(folder):  # one may lack the right to list them
        for upload in _uploads(filesystem, bucket, prefix):
            below, _, last = upload["Key"].removeprefix(prefix).rpartition("/")
            if below in names and re.fullmatch(names[below], last):
                named = {"Key": upload["Key"], "UploadId": upload["UploadId"]}
                filesystem.call_s3("abort_multipart_upload", Bucket=bucket, **named)
                aborted += 1
    return aborted


def _uploads(filesystem: AbstractFileSystem, bucket: str, prefix: str) -> Iterator[dict[str, Any]]:
    after: dict[str, str] = {}
    while True:
        page = filesystem.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=prefix, **after)
        yield from page.get("Uploads", ())
        if not page.get("IsTruncated"):
            return
        after = {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]}
