"""Strips: where a page is cut so that its letters reach the model large enough to be read. Numbers in, numbers out."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from pipeline.preprocess.columns import Region, regions
from pipeline.preprocess.geometry import Anyres, select_grid
from pipeline.preprocess.ink import Mask, Rows, ink_mask, rows_of
from pipeline.preprocess.ink import ink_rows as ink_rows
from schemas.errors import RowError
from schemas.sample import Size

MOST_STRIPS = 64
WORTH = 1.25  # strips must show a page at so many times the scale of one view of the whole
_MARGIN = 8  # rows of paper left above and below the ink
_LEAST_GAP, _LEAST_SHARE = 3, 0.15  # white rows between two lines of text: so many, and this share of a line's height
_OVERLAP = 5  # a strip cut through ink repeats a fifth of its height: a line not taller is whole in one of the two


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Rows of a page, `bottom` not among them; of a column of print the columns of pixels from `left` to `right`, which
    is 0 for the page's own width."""

    top: int
    bottom: int
    left: int = 0
    right: int = 0


def cut_page(image: Image.Image, anyres: Anyres) -> tuple[Span, ...]:
    """Return the strips to read a page in, top to bottom; () where one view of the whole is as good. Columns of print
    are read one after the other, each in strips of its own.

    Raises RowError where there would be more than MOST_STRIPS.
    """
    page = Size(image.width, image.height)
    height = strip_height(page, anyres)
    if height is None:
        return ()
    mask = ink_mask(image, height // 2)
    spans = tuple(span for region in regions(mask) for span in _cut_region(mask, region, page, anyres))
    if len(spans) > MOST_STRIPS:
        message = f"the page must be read in at most {MOST_STRIPS} strips, {image.width}x{image.height} pixels take"
        raise RowError("decode", "TooManyStrips", f"{message} {len(spans)}: cut it, or use --strips off")
    return spans if len(spans) > 1 else ()


def _cut_region(mask: Mask, region: Region, page: Size, anyres: Anyres) -> Iterator[Span]:
    """Yield the strips of some rows, or of one column of print in them, which may be narrower and so shown larger."""
    columns = region.columns
    own = page if columns is None else Size(columns.right - columns.left, page.height)
    inked = mask[region.top : region.bottom, slice(None) if columns is None else slice(columns.left, columns.right)]
    height = strip_height(own, anyres) or region.bottom - region.top
    for span in cut_rows(rows_of(inked), height):
        sides = {} if columns is None else {"left": columns.left, "right": columns.right}
        yield Span(top=region.top + span.top, bottom=region.top + span.bottom, **sides)


def strip_height(page: Size, anyres: Anyres) -> int | None:
    """Return the tallest strip of the page's width that is shown at the largest scale there is; None where it gains
    little."""
    views = [(min(1.0, grid.width / page.width), grid.height) for grid in anyres.grids]
    scale = max(scale for scale, _ in views)
    height = max(int(rows / scale) for own, rows in views if own == scale)
    grid = select_grid(page, anyres)
    whole = min(1.0, grid.width / page.width, grid.height / page.height)
    return height if scale >= WORTH * whole and height < page.height else None


def cut_rows(ink: Rows, height: int) -> tuple[Span, ...]:
    """Yield spans of at most `height` rows with every row of ink in one of them, in order; blank paper may be in none.

    A span ends in the last white gap between lines in its lower half, and the next begins behind it. Where there is no
    such gap it ends in the ink, and the next repeats its last fifth.
    """
    inked = np.flatnonzero(ink)
    if not len(inked):
        return ()
    gaps, line = _gaps(_runs(inked), height // _OVERLAP)
    spans: list[Span] = []
    top, end = max(0, int(inked[0]) - _MARGIN), int(inked[-1]) + 1
    while end - top > height:
        gap = _last_gap(gaps, top + height // 2, top + height, line)
        if gap is None:
            spans.append(Span(top=top, bottom=top + height))
            top += height - height // _OVERLAP
        else:
            behind = int(np.searchsorted(inked, gap))
            spans.append(Span(top=top, bottom=min(gap, int(inked[behind - 1]) + 1 + _MARGIN)))
            top = max(gap, int(inked[behind]) - _MARGIN)
    return (*spans, Span(top=top, bottom=min(end + _MARGIN, top + height, len(ink))))


def _runs(inked: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return (runs, 2): where each run of inked rows begins, and the row behind it."""
    breaks = np.flatnonzero(np.diff(inked) > 1)
    return np.stack([inked[np.concatenate([[0], breaks + 1])], inked[np.concatenate([breaks, [-1]])] + 1], axis=1)


def _gaps(runs: npt.NDArray[np.int64], tallest: int) -> tuple[npt.NDArray[np.int64], float]:
    """Return (gaps, 2): the white rows between lines, and how tall lines are; `tallest` is the tallest that one may be.

    White rows between accents, or dots, and their letters are none of them: these are low runs, nearer to their letters
    than half a line. Neither are those that are much lower than a line: where descenders reach the next line's accents
    only such are left.
    """
    heights = runs[:, 1] - runs[:, 0]
    lines = np.sort(heights[heights <= tallest])
    line = float(lines[np.searchsorted(np.cumsum(lines), lines.sum() / 2)]) if len(lines) else 0.0  # of half the ink
    gaps = np.stack([runs[:-1, 1], runs[1:, 0]], axis=1)
    sizes = gaps[:, 1] - gaps[:, 0]
    around = np.concatenate([[len(runs) and 10**9], sizes, [10**9]])  # the white above each run, and below the last
    low = heights < line / 2
    joins_below = low & (around[1:] < around[:-1]) & (around[1:] < line / 2)
    joins_above = low & ~joins_below & (around[:-1] < line / 2)
    inside = joins_below[:-1] | joins_above[1:]
    return gaps[~inside & (sizes >= max(_LEAST_GAP, _LEAST_SHARE * line))], line


def _last_gap(gaps: npt.NDArray[np.int64], first: int, last: int, line: float) -> int | None:
    """Return the middle of the last gap from row `first` on that begins before `last`; None where there is none.

    One that is much lower than others there is passed over, unless these are more than lines need.
    """
    sizes = gaps[:, 1] - gaps[:, 0]
    near = (gaps[:, 1] > first) & (gaps[:, 0] < last)
    if not near.any():
        return None
    near &= sizes >= min(int(sizes[near].max()), line) / 2
    begin, end = gaps[np.flatnonzero(near)[-1]]
    return (max(int(begin), first) + min(int(end), last)) // 2
