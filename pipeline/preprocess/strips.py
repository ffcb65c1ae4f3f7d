"""Strips: where a page is cut so that its letters reach the model large enough to be read. Numbers in, numbers out."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from pipeline.preprocess.geometry import Anyres, select_grid
from schemas.errors import RowError
from schemas.sample import Size

Rows = npt.NDArray[np.bool_]

MOST_STRIPS = 64
WORTH = 1.25  # strips must show a page at so many times the scale of one view of the whole
_CONTRAST = 40  # of 255 between ink and the paper around it
_SPECKS = 1  # pixels of a row that may be dust
_ROWS_AT_ONCE = 512  # so that a large page needs little memory
_MARGIN = 8  # rows of paper left above and below the ink
_LEAST_GAP = 3  # white rows between two lines of text
_OVERLAP = 5  # a strip cut through ink repeats a fifth of its height: a line not taller is whole in one of the two


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Rows of a page, `bottom` not among them."""

    top: int
    bottom: int


def cut_page(image: Image.Image, anyres: Anyres) -> tuple[Span, ...]:
    """The strips to read a page in, top to bottom; () where one view of the whole is as good.

    Raises RowError where there would be more than MOST_STRIPS.
    """
    height = strip_height(Size(image.width, image.height), anyres)
    if height is None:
        return ()
    spans = cut_rows(ink_rows(image), height)
    if len(spans) > MOST_STRIPS:
        message = f"the page must be read in at most {MOST_STRIPS} strips, {image.width}x{image.height} pixels take"
        raise RowError("decode", "TooManyStrips", f"{message} {len(spans)}: cut it, or use --strips off")
    return spans if len(spans) > 1 else ()


def strip_height(page: Size, anyres: Anyres) -> int | None:
    """The tallest strip of the page's width that is shown at the largest scale there is; None where it gains little."""
    views = [(min(1.0, grid.width / page.width), grid.height) for grid in anyres.grids]
    scale = max(scale for scale, _ in views)
    height = max(int(rows / scale) for own, rows in views if own == scale)
    grid = select_grid(page, anyres)
    whole = min(1.0, grid.width / page.width, grid.height / page.height)
    return height if scale >= WORTH * whole and height < page.height else None


def ink_rows(image: Image.Image) -> Rows:
    """Which rows of pixels have something on them, whatever the colour of the paper: they differ from their median."""
    grey = np.asarray(image.convert("L"))
    return np.concatenate([_inked(grey[top : top + _ROWS_AT_ONCE]) for top in range(0, len(grey), _ROWS_AT_ONCE)])


def cut_rows(ink: Rows, height: int) -> tuple[Span, ...]:
    """Spans of at most `height` rows with every row of ink in one of them, in order; blank paper may be in none.

    A span ends in the last white gap of its lower half and the next begins behind it. Where there is no gap it ends
    in the ink, and the next repeats its last fifth.
    """
    inked = np.flatnonzero(ink)
    if not len(inked):
        return ()
    spans: list[Span] = []
    top, end = max(0, int(inked[0]) - _MARGIN), int(inked[-1]) + 1
    while end - top > height:
        gap = _last_gap(ink, top + height // 2, top + height)
        if gap is None:
            spans.append(Span(top=top, bottom=top + height))
            top += height - height // _OVERLAP
        else:
            behind = int(np.searchsorted(inked, gap))
            spans.append(Span(top=top, bottom=min(gap, int(inked[behind - 1]) + 1 + _MARGIN)))
            top = max(gap, int(inked[behind]) - _MARGIN)
    return (*spans, Span(top=top, bottom=min(end + _MARGIN, top + height, len(ink))))


def _inked(grey: npt.NDArray[np.uint8]) -> Rows:
    paper = np.median(grey, axis=1, keepdims=True)
    return np.asarray((np.abs(grey - paper) > _CONTRAST).sum(axis=1) > _SPECKS)


def _last_gap(ink: Rows, first: int, last: int) -> int | None:
    """The middle of the last white gap from row `first` on that begins before `last`; None where there is none."""
    white = np.flatnonzero(~ink[first:last]) + first
    for run in reversed(np.split(white, np.flatnonzero(np.diff(white) > 1) + 1)):
        if len(run) >= _LEAST_GAP:
            return int(run[len(run) // 2])
    return None
