"""Ink: which pixels of a page are print, whatever its colour and its paper's, and which are only frames and shades."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from PIL import Image

Rows = npt.NDArray[np.bool_]
Mask = npt.NDArray[np.bool_]  # (height, width)
Pixels = npt.NDArray[np.uint8]

_BLOCK = 32  # pixels of a row that share their paper: its most common colour there
_LEAST_CONTRAST, _MOST_CONTRAST = 12, 40  # of 255 in any channel; between them as the paper's own noise asks for
_NOISE = 4  # times the paper's median difference from itself
_SAMPLES = 64  # rows that the noise is measured in
_RINGING, _REACH = 0.3, 8  # what JPEG scatters around print: a share of its contrast, rows from it
_SPECKS = 1  # pixels of a row that may be dust
_ROWS_AT_ONCE = 512  # so that a large page needs little memory
_SLANT = 2  # columns that a rule may lean over without being taken for several


def ink_rows(image: Image.Image, tallest: int | None = None) -> Rows:
    """Return which rows of pixels have print on them. What runs down more than `tallest` rows (half the page, if
    nothing is said) is no letter but the side of a frame, a rule or a shade."""
    return rows_of(ink_mask(image, tallest))


def rows_of(mask: Mask) -> Rows:
    """Return which rows have more on them than dust."""
    return np.asarray(mask.sum(axis=1) > _SPECKS)


def ink_mask(image: Image.Image, tallest: int | None = None) -> Mask:
    """Return which pixels differ from the paper around them in some channel, without what runs down too far."""
    noise = _noise(image)
    mask = np.concatenate([_inked(band, noise)[keep] for band, keep in _bands(image)])
    return mask & ~_long_runs(mask, (tallest or image.height // 2) + 1)


def _bands(image: Image.Image) -> Iterator[tuple[Pixels, slice]]:
    """Yield rows of the page with those around them that matter to them, and which of these they are."""
    for top in range(0, image.height, _ROWS_AT_ONCE):
        first = max(0, top - _REACH)
        last = min(image.height, top + _ROWS_AT_ONCE + _REACH)
        size = min(_ROWS_AT_ONCE, image.height - top)
        yield _pixels(image.crop((0, first, image.width, last))), slice(top - first, top - first + size)


def _pixels(image: Image.Image) -> Pixels:
    """Return (height, width, channels): one channel where there is no colour."""
    pixels = np.asarray(image if image.mode in ("L", "RGB") else image.convert("RGB"))
    if pixels.ndim == 3 and (pixels == pixels[..., :1]).all():
        pixels = pixels[..., :1]
    return np.atleast_3d(pixels)


def _noise(image: Image.Image) -> float:
    """Return the contrast that the paper has by itself, from rows all over the page."""
    rows = range(0, image.height, max(1, image.height // _SAMPLES))
    middles = [np.median(_contrast(_pixels(image.crop((0, row, image.width, row + 1))))) for row in rows]
    return float(np.clip(_NOISE * np.median(middles), _LEAST_CONTRAST, _MOST_CONTRAST))


def _contrast(pixels: Pixels) -> Pixels:
    """Return (height, blocks, _BLOCK): how far each pixel is from its block's paper, in the channel where it is
    farthest."""
    height, width, channels = pixels.shape
    padded = np.pad(pixels, ((0, 0), (0, -width % _BLOCK), (0, 0)), mode="edge")
    blocks = padded.reshape(height, -1, _BLOCK, channels)
    paper = np.partition(blocks, _BLOCK // 2, axis=2)[:, :, _BLOCK // 2, None]
    return np.asarray((np.maximum(blocks, paper) - np.minimum(blocks, paper)).max(axis=3))


def _inked(pixels: Pixels, noise: float) -> Mask:
    contrast = _contrast(pixels)
    peaks = contrast.max(axis=2)
    around = np.pad(peaks, ((_REACH, _REACH), (1, 1)))
    nearby = np.max(np.lib.stride_tricks.sliding_window_view(around, (2 * _REACH + 1, 3)), axis=(2, 3))
    threshold = np.maximum(noise, _RINGING * nearby)[..., None]
    return np.asarray((contrast > threshold).reshape(len(pixels), -1)[:, : pixels.shape[1]])


def _long_runs(mask: Mask, length: int) -> Mask:
    """Return which pixels are in a vertical run of so many rows, slightly slanted ones too."""
    found = np.zeros_like(mask)
    if length > len(mask):
        return found
    wide = np.pad(mask, ((0, 0), (_SLANT, _SLANT)))
    leaning = np.any([wide[:, shift : shift + mask.shape[1]] for shift in range(2 * _SLANT + 1)], axis=0)
    for column in np.flatnonzero(leaning.sum(axis=0) >= length):
        run = np.cumsum(np.concatenate([[0], leaning[:, column]]))
        starts = np.flatnonzero(run[length:] - run[:-length] == length)
        edges = np.zeros(len(mask) + 1, np.int64)
        np.add.at(edges, starts, 1)
        np.add.at(edges, starts + length, -1)
        found[:, column] = np.cumsum(edges[:-1]) > 0
    return found
