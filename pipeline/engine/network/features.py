"""Index the patches whose features replace an image's tokens, in their order: integers in, integers out."""

import numpy as np
import numpy.typing as npt

from pipeline.preprocess.geometry import Anyres, select_grid, unpadded
from schemas.sample import Size


def feature_index(image: Size, anyres: Anyres, newline: int) -> npt.NDArray[np.int32]:
    """Return the index of each image token's feature among the patches of its tiles; `newline` is that of a row's end.

    The base tile's patches come first. The grid's patches follow in reading order over the whole picture, without the
    rows or columns that show only padding.
    """
    base, shown = np.arange(anyres.patches_per_side**2, dtype=np.int32), _shown(image, anyres)
    lines = np.concatenate([shown, np.full((len(shown), 1), newline, np.int32)], axis=1)
    return np.concatenate([base, lines.reshape(-1)])


def shown_patches(image: Size, anyres: Anyres) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the index of each patch of the grid that shows the image, in reading order, and the grid's tile it is of;
    the base tile's patches are counted before them."""
    shown = _shown(image, anyres).reshape(-1).astype(np.int64)
    return shown, shown // anyres.patches_per_side**2 - 1


def _shown(image: Size, anyres: Anyres) -> npt.NDArray[np.int32]:
    """Return the indices of the grid's patches as the picture has them, without padding."""
    grid, side = select_grid(image, anyres), anyres.patches_per_side
    rows, cols = grid.height // anyres.tile, grid.width // anyres.tile
    of_tiles = side * side + np.arange(side * side * rows * cols, dtype=np.int32)
    picture = of_tiles.reshape(rows, cols, side, side).swapaxes(1, 2).reshape(rows * side, cols * side)
    return _unpad(picture, image)


def _unpad(picture: npt.NDArray[np.int32], image: Size) -> npt.NDArray[np.int32]:
    """Drop the same number of lines on both sides."""
    height, width = picture.shape
    shown = unpadded(Size(width, height), image)
    top, left = (height - shown.height) // 2, (width - shown.width) // 2
    return picture[top : height - top, left : width - left]
