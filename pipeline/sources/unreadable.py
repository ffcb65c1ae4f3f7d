"""Unreadable: what a person is told of rows that were listed and cannot be read."""

import socket

import pyarrow as pa

from pipeline.sources.source import RowRange
from pipeline.storage import filesystem as fs
from pipeline.storage.backoff import WAITS_S, is_transient
from schemas.errors import Failure

SHOWN = 300  # characters of an error in a message


def why_unread(row_range: RowRange, error: OSError | pa.ArrowException) -> Failure:
    """Return the failure of all rows of a range."""
    said = str(error) if len(str(error)) <= SHOWN else f"{str(error)[:SHOWN]}..."
    if isinstance(error, FileNotFoundError):
        on = "" if fs.local_path(row_range.url) is None else f" on {socket.gethostname()}"  # others may see other disks
        return Failure(stage="read", type="FileNotFound", message=f"{row_range} are not there any more{on}: {said}")
    if isinstance(error, PermissionError):
        return Failure(stage="read", type="PermissionDenied", message=f"{row_range} may not be read: {said}")
    if is_transient(error):
        tries = f"{len(WAITS_S) + 1} tries"
        return Failure(stage="read", type="ReadFailed", message=f"{row_range} could not be read in {tries}: {said}")
    if is_no_text(error):
        return Failure(
            stage="read", type="InvalidText", message=f"{row_range} must be UTF-8 text: {said}; write it anew"
        )
    message = f"{row_range} cannot be read: {said}; put the file back as it was, then retry them"
    return Failure(stage="read", type="BrokenFile", message=message)


def is_no_text(error: Exception) -> bool:
    """Return whether Arrow found text that is not UTF-8; that of a dictionary it finds while it decodes a row group."""
    return isinstance(error, UnicodeError) or (isinstance(error, pa.ArrowInvalid) and "UTF8" in str(error))
