"""Columns of print: where a page is set in two or more, which are read one after the other."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from pipeline.preprocess.ink import Mask, rows_of

_MOST_COLUMNS = 4
_LEAST_LINES = 6  # of print in every column
_LEAST_WIDTH = 10  # heights of a line, that a column is wide: the cells of a table are less
_ALIKE = 0.5  # of the widest column's width, that every other has
_FULL = 0.6  # of a column's width, that at least half of its lines fill: beside a list of names there are shorter ones
_GUTTER = 0.02  # of the page's width, that is white between columns at least
_NARROW = 0.35  # of a column's width, that is white at most

Rows = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """Columns of pixels, `right` not among them."""

    left: int
    right: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Region:
    """Rows of a page that are read together, or one column of print in them."""

    top: int
    bottom: int
    columns: Columns | None = None


def regions(mask: Mask) -> Iterator[Region]:
    """The parts of a page in the order that they are read in: its rows from top to bottom, and where columns stand side
    by side, one of these after the other."""
    height = len(mask)
    found = _side_by_side(mask)
    if found is None:
        yield Region(top=0, bottom=height)
        return
    top, bottom = found[0].top, found[0].bottom
    if rows_of(mask[:top]).any():
        yield Region(top=0, bottom=top)
    yield from found
    if rows_of(mask[bottom:]).any():
        for below in regions(mask[bottom:]):
            yield replace(below, top=bottom + below.top, bottom=bottom + below.bottom)


def _side_by_side(mask: Mask) -> list[Region] | None:
    """The columns of the rows that most print stands side by side in; None where there are none."""
    corridor = _corridor(mask)
    if corridor is None:
        return None
    top, bottom = corridor
    blank: Rows = np.asarray(~mask[top:bottom].any(axis=0))
    least = max(2, int(_GUTTER * mask.shape[1]))
    gutters = [run for run in _runs_of(blank) if run[1] - run[0] >= least and run[0] > 0 and run[1] < len(blank)]
    edges = [0, *((left + right) // 2 for left, right in gutters), len(blank)]
    columns = [Columns(left=left, right=right) for left, right in zip(edges, edges[1:], strict=False)]
    prints = [_print_of(mask[top:bottom, one.left : one.right]) for one in columns]
    if not 2 <= len(columns) <= _MOST_COLUMNS or not _are_columns(prints, [right - left for left, right in gutters]):
        return None
    return [Region(top=top, bottom=bottom, columns=one) for one in columns]


def _corridor(mask: Mask) -> tuple[int, int] | None:
    """The rows in which something white runs down between print on either side: as many rows of print as there are."""
    step = max(1, int(_GUTTER * mask.shape[1]) // 2)
    padded = np.pad(mask, ((0, 0), (0, -mask.shape[1] % step)))
    blocks: Mask = np.asarray(padded.reshape(len(mask), -1, step).any(axis=2))
    before = np.logical_or.accumulate(blocks, axis=1)
    behind = np.logical_or.accumulate(blocks[:, ::-1], axis=1)[:, ::-1]
    best, found = 0, None
    for place in range(1, blocks.shape[1] - 1):
        both = before[:, place - 1] & behind[:, place + 1]
        for top, bottom in _runs_of(~blocks[:, place]):
            if (count := int(both[top:bottom].sum())) > best:
                best, found = count, (top, bottom)
    return found and _to_white(rows_of(mask), *found)


def _to_white(inked: Rows, top: int, bottom: int) -> tuple[int, int]:
    """Rows without the rest of a line above or below them that reaches across."""
    white = np.flatnonzero(~inked[top:bottom])
    if not len(white):
        return top, bottom
    return (top if top == 0 else top + int(white[0])), (bottom if bottom == len(inked) else top + int(white[-1]) + 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Print:
    """The print of a column: how wide it is, and how many lines it has, how tall and how full."""

    width: int
    num_lines: int
    line: float
    full: float  # share of the lines that fill the width


def _print_of(mask: Mask) -> _Print:
    inked = np.flatnonzero(mask.any(axis=0))
    lines = _runs_of(rows_of(mask))
    if not len(inked) or not lines:
        return _Print(width=0, num_lines=0, line=0.0, full=0.0)
    width = int(inked[-1] - inked[0]) + 1
    reach = [np.flatnonzero(mask[top:bottom].any(axis=0)) for top, bottom in lines]
    full = np.mean([own[-1] - own[0] >= _FULL * width for own in reach])
    return _Print(width=width, num_lines=len(lines), line=float(np.median([b - a for a, b in lines])), full=float(full))


def _are_columns(prints: list[_Print], gutters: list[int]) -> bool:
    widest, narrowest = max(one.width for one in prints), min(one.width for one in prints)
    text = all(
        one.num_lines >= _LEAST_LINES and one.full >= 0.5 and one.width >= _LEAST_WIDTH * one.line for one in prints
    )
    return text and narrowest >= _ALIKE * widest and max(gutters) <= _NARROW * narrowest


def _runs_of(rows: Rows) -> list[tuple[int, int]]:
    """Where each run of true values begins, and the place behind it."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], rows, [False]])))
    return [(int(begin), int(end)) for begin, end in edges.reshape(-1, 2)]
