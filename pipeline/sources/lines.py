"""Lines: where the lines of a text file begin, and what is in one."""

from collections.abc import Iterator
from typing import IO

import numpy as np
import numpy.typing as npt

from pipeline.sources.records import LONGEST_ROW
from pipeline.sources.source import RowIndex, RowRange
from schemas.errors import Failure

_BLOCK_BYTES = 8 * 2**20
_BLANK = 32  # bytes up to this one may be blank
BOM = b"\xef\xbb\xbf"


def index_lines(file: IO[bytes], limit: int | None) -> RowIndex:
    """Find the lines of a file that are not blank, or the first `limit` of them."""
    starts, lines = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    position = begun = num_lines = found = 0  # begun: where the line that a block begins in has begun
    is_filled = False  # that line, so far
    while (limit is None or found < limit) and (block := file.read(_BLOCK_BYTES)):
        ends = np.flatnonzero(np.frombuffer(block, np.uint8) == 10) + 1
        own = _filled(block, ends, first=is_filled)
        starts.append(np.concatenate([[begun], ends[:-1] + position])[: len(ends)][own])
        lines.append(np.flatnonzero(own) + num_lines)
        num_lines, found = num_lines + len(ends), found + int(own.sum())
        last = int(ends[-1]) if len(ends) else 0
        is_filled = bool(block[last:].strip()) or (is_filled and not last)
        begun = position + last if last else begun
        position += len(block)
    if is_filled and (limit is None or found < limit):  # a last line without an end
        starts.append(np.array([begun], np.int64))
        lines.append(np.array([num_lines], np.int64))
    offsets, numbers = np.concatenate([*starts, [position]]).astype(np.int64), np.concatenate(lines)
    stop = len(numbers) if limit is None else min(limit, len(numbers))
    return RowIndex(offsets=offsets[: stop + 1], lines=numbers[:stop])


def _filled(block: bytes, ends: npt.NDArray[np.int64], *, first: bool) -> npt.NDArray[np.bool_]:
    """Return which lines that end in a block are not blank; `first` says of the first that it is not."""
    starts = np.concatenate([[0], ends[:-1]])[: len(ends)].astype(np.int64)
    filled: npt.NDArray[np.bool_] = np.frombuffer(block, np.uint8)[starts] > _BLANK
    for i in np.flatnonzero(~filled).tolist():
        filled[i] = bool(block[starts[i] : ends[i]].strip())
    filled[:1] |= first
    return filled


def read_lines(file: IO[bytes], row_range: RowRange) -> Iterator[tuple[int, bytes | Failure]]:
    """Yield the lines of a range that are not blank, each with its number from 1; one that is too long is a failure."""
    number, found = row_range.line, 0
    while found < row_range.num_rows and (line := file.readline(LONGEST_ROW)):
        number += 1
        if len(line) == LONGEST_ROW and not line.endswith(b"\n"):
            while (more := file.readline(_BLOCK_BYTES)) and not more.endswith(b"\n"):
                pass
            found += 1
            message = f"line {number} of {row_range.url} must have at most {LONGEST_ROW:,} bytes: give images as paths"
            yield number, Failure(stage="read", type="TooLarge", message=message)
        elif line.strip():
            found += 1
            yield number, line.removeprefix(BOM) if number == 1 else line
