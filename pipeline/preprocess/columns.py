"""Columns of print: where a page is set in two or more, which are read one after the other."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from pipeline.preprocess.ink import Mask, rows_of

_MOST_COLUMNS = 4
_LEAST_LINES = 6  # of print in every column
_LEAST_WIDTH = 8  # heights of a line, that a column is wide: the cells of a table are less
_ALIKE = 0.5  # of the widest column's width, that every other has
_FULL = 0.6  # of a column's width, that at least half of its lines fill where it is running text
_GUTTER = 0.02  # of the page's width, that is white between columns at least
_NARROW, _WIDE = 0.35, 1.25  # of a column's width, that is white at most: between running text, and between two lists
_MOST_OF = 0.6  # of a page's rows of print, that two lists stand side by side in: less is a table in a page
_MOST_TRIED = 16  # runs of white between print
_ROWS_AT_ONCE = 512  # so that a large page needs little memory
_AROUND, _DUST = 2, 4  # pixels around one in which there are so many more, or it is dust

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
    """Yield the parts of a page in the order that they are read in: its rows from top to bottom, and where columns
    stand side by side, one of these after the other."""
    height = len(mask)
    found = _side_by_side(_without_dust(mask))
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
    """Return the columns of the rows that most print stands side by side in; None where there are none."""
    return next((found for rows in _corridors(mask) if (found := _columns_in(mask, *rows)) is not None), None)


def _columns_in(mask: Mask, top: int, bottom: int) -> list[Region] | None:
    """Return the columns that these rows are set in, if they are."""
    blank: Rows = np.asarray(~mask[top:bottom].any(axis=0))
    least = max(2, int(_GUTTER * mask.shape[1]))
    gutters = [run for run in _runs_of(blank) if run[1] - run[0] >= least and run[0] > 0 and run[1] < len(blank)]
    edges = [0, *((left + right) // 2 for left, right in gutters), len(blank)]
    columns = [Columns(left=left, right=right) for left, right in zip(edges, edges[1:], strict=False)]
    prints = [_print_of(mask[top:bottom, one.left : one.right]) for one in columns]
    share = rows_of(mask[top:bottom]).sum() / max(1, rows_of(mask).sum())
    if not _are_columns(prints, [right - left for left, right in gutters], float(share)):
        return None
    return [Region(top=top, bottom=bottom, columns=one) for one in columns]


def _corridors(mask: Mask) -> list[tuple[int, int]]:
    """Return the rows in which something white runs down between print on either side, those with most print first.

    The longest may run through the space between two words of a heading above the columns: the next will not.
    """
    step = max(1, int(_GUTTER * mask.shape[1]) // 2)
    padded = np.pad(mask, ((0, 0), (0, -mask.shape[1] % step)))
    blocks: Mask = np.asarray(padded.reshape(len(mask), -1, step).any(axis=2))
    before = np.logical_or.accumulate(blocks, axis=1)
    behind = np.logical_or.accumulate(blocks[:, ::-1], axis=1)[:, ::-1]
    found: dict[tuple[int, int], int] = {}
    for block in range(1, blocks.shape[1] - 1):
        both = np.cumsum(np.concatenate([[False], before[:, block - 1] & behind[:, block + 1]]))
        for top, bottom in _runs_of(~blocks[:, block]):
            found[top, bottom] = max(found.get((top, bottom), 0), int(both[bottom] - both[top]))
    inked, best = rows_of(mask), sorted((rows for rows in found if found[rows]), key=lambda rows: -found[rows])
    return list(dict.fromkeys(_to_white(inked, *rows) for rows in best[:_MOST_TRIED]))


def _to_white(inked: Rows, top: int, bottom: int) -> tuple[int, int]:
    """Return rows without the rest of a line above or below them that reaches across."""
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


def _are_columns(prints: list[_Print], gutters: list[int], share: float) -> bool:
    """Return whether these are columns of running text, or two lists that are most of the page: `share` of its
    print."""
    widest, narrowest = max(one.width for one in prints), min(one.width for one in prints)
    wide = all(one.num_lines >= _LEAST_LINES and one.width >= _LEAST_WIDTH * one.line for one in prints)
    if not (2 <= len(prints) <= _MOST_COLUMNS and wide and narrowest >= _ALIKE * widest):
        return False
    if all(one.full >= 0.5 for one in prints) and max(gutters) <= _NARROW * narrowest:
        return True
    return len(prints) == 2 and share >= _MOST_OF and max(gutters) <= _WIDE * narrowest


def _without_dust(mask: Mask) -> Mask:
    """Return the print without what stands alone: a grain in the white between columns does not part it."""
    bands = range(0, len(mask), _ROWS_AT_ONCE)
    near = [_print_around(mask[max(0, top - _AROUND) : top + _ROWS_AT_ONCE + _AROUND]) for top in bands]
    own = [
        counts[min(top, _AROUND) :][: min(_ROWS_AT_ONCE, len(mask) - top)]
        for top, counts in zip(bands, near, strict=True)
    ]
    return np.asarray(mask & (np.concatenate(own) > _DUST))


def _print_around(mask: Mask) -> npt.NDArray[np.uint8]:
    """Return how many pixels are print around each, itself among them."""
    counts = mask.astype(np.uint8)
    for _ in range(2):  # along the rows, then along the columns
        one = counts
        counts = one.copy()
        for shift in range(1, _AROUND + 1):
            counts[:, shift:] += one[:, :-shift]
            counts[:, :-shift] += one[:, shift:]
        counts = counts.T
    return counts


def _runs_of(rows: Rows) -> list[tuple[int, int]]:
    """Return where each run of true values begins, and the index behind it."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], rows, [False]])))
    return [(int(begin), int(end)) for begin, end in edges.reshape(-1, 2)]
