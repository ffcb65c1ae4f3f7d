"""Which features take an image's place in a prompt, and in which order: integers in, integers out."""

import numpy as np
import numpy.typing as npt

from pipeline.preprocess.geometry import Anyres, select_grid
from schemas.sample import Size


def feature_index(image: Size, anyres: Anyres, newline: int) -> npt.NDArray[np.int32]:
    """Where each of the image's tokens is found among its tiles' patches, tile after tile; `newline` ends a row.

    The base tile's patches come first. The grid's patches follow in reading order over the whole picture, without the
    rows or columns that only show padding.
    """
    grid, side = select_grid(image, anyres), anyres.patches_per_side
    rows, cols = grid.height // anyres.tile, grid.width // anyres.tile
    patches = np.arange(side * side * (1 + rows * cols), dtype=np.int32)
    base, of_tiles = patches[: side * side], patches[side * side :]
    picture = of_tiles.reshape(rows, cols, side, side).swapaxes(1, 2).reshape(rows * side, cols * side)
    shown = _unpad(picture, image)
    lines = np.concatenate([shown, np.full((len(shown), 1), newline, np.int32)], axis=1)
    return np.concatenate([base, lines.reshape(-1)])


def _unpad(picture: npt.NDArray[np.int32], image: Size) -> npt.NDArray[np.int32]:
    """Drop the same number of lines on both sides: with the roundings of transformers, which count the tokens too."""
    height, width = picture.shape
    if image.width / image.height > width / height:
        padding = (height - int(round(image.height * (width / image.width), 7))) // 2
        return picture[padding : height - padding]
    padding = (width - int(round(image.width * (height / image.height), 7))) // 2
    return picture[:, padding : width - padding]
