"""Anyres geometry: which grid an image is cut by, how it is scaled into it, and how many tokens it becomes.

Every rounding here is that of LLaVA-NeXT in transformers: one token of difference would shift all features after it.
"""

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

from schemas.errors import Refused
from schemas.sample import Size

Resample: TypeAlias = Literal["bicubic", "bilinear"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Anyres:
    """Describes how a checkpoint cuts images: square tiles of `tile` pixels, each seen as patches of `patch` pixels.

    `grids` are the sizes in pixels that an image may be fitted into, in the order of the checkpoint's config: of two
    that fit equally well the first is taken.
    """

    tile: int
    patch: int
    grids: tuple[Size, ...]
    resample: Resample = "bicubic"  # how an image is scaled
    share: float = 1.0  # of an image's tokens that are kept, see engine/network/selection.py

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise Refused(f"image_tokens must be above 0 and at most 1, got {self.share}")
        if not 1 <= self.patch <= self.tile:
            raise Refused(f"patch must be between 1 and the tile's {self.tile} pixels, got {self.patch}")
        if not self.grids:
            raise Refused("grids must name at least one size, got none")
        for grid in self.grids:
            if min(grid.width, grid.height) < self.tile or grid.width % self.tile or grid.height % self.tile:
                raise Refused(f"grids must be multiples of the tile's {self.tile} pixels, got {grid}")

    @property
    def patches_per_side(self) -> int:
        """Count patches along one side of a tile; an incomplete last one is dropped."""
        return self.tile // self.patch

    @property
    def most_bytes(self) -> int:
        """Count the bytes of the tiles of an image, in three channels, that has as many of them as one can have."""
        return 3 * (self.tile**2 + max((grid.width * grid.height for grid in self.grids), default=0))


def select_grid(image: Size, anyres: Anyres) -> Size:
    """Return the grid, in pixels, that keeps most of the image's pixels; among equals the one that wastes least."""

    def merit(grid: Size) -> tuple[int, int]:
        scale = min(grid.width / image.width, grid.height / image.height)
        fitted = int(image.width * scale) * int(image.height * scale)
        kept = min(fitted, image.width * image.height)
        return kept, kept - grid.width * grid.height

    return max(anyres.grids, key=merit)  # max keeps the first of equals


def scaled_size(image: Size, grid: Size) -> Size:
    """Return the image's size once scaled to touch the grid on two sides; never 0, however thin the image is."""
    across, down = grid.width / image.width, grid.height / image.height
    if across < down:
        return Size(grid.width, min(math.ceil(image.height * across), grid.height))
    return Size(min(math.ceil(image.width * down), grid.width), grid.height)


def num_tiles(image: Size, anyres: Anyres) -> int:
    """Count the tiles of an image: the base tile and those of its grid."""
    grid = select_grid(image, anyres)
    return 1 + (grid.width // anyres.tile) * (grid.height // anyres.tile)


def num_image_tokens(image: Size, anyres: Anyres) -> int:
    """Count the tokens of an image: the base tile's patches, and rows of unpadded patches, each row with a newline at
    its end; or those that are kept of them."""
    if anyres.share < 1:
        kept = kept_tokens(image, anyres)
        return kept.base + kept.grid
    rows = shown_rows(image, anyres)
    return anyres.patches_per_side**2 + rows.height * (rows.width + 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """Numbers of patches that are kept of an image: of its base tile, and of its grid."""

    base: int
    grid: int


def kept_tokens(image: Size, anyres: Anyres) -> Kept:
    """Return how many patches are kept of an image where it has a share of its tokens; no newline is.

    Half are of the base tile, or more where the grid does not show so many.
    """
    rows, patches = shown_rows(image, anyres), anyres.patches_per_side**2
    num = max(1, int(anyres.share * (patches + rows.height * (rows.width + 1))))
    grid = min(rows.height * rows.width, num - num // 2)
    return Kept(base=min(patches, num - grid), grid=grid)


def shown_rows(image: Size, anyres: Anyres) -> Size:
    """Return the patches of the grid that show the image, without those of padding alone."""
    grid, side = select_grid(image, anyres), anyres.patches_per_side
    return unpadded(Size(side * (grid.width // anyres.tile), side * (grid.height // anyres.tile)), image)


def unpadded(patches: Size, image: Size) -> Size:
    """Return the grid's patches less the padding on two sides.

    Unlike the pixels the patches are rounded down, so a very thin image keeps none of them: a wide one loses its rows
    and their newlines, a tall one keeps the newlines alone.
    """
    if image.width / image.height > patches.width / patches.height:
        height = int(round(image.height * (patches.width / image.width), 7))
        return Size(patches.width, patches.height - 2 * ((patches.height - height) // 2))
    width = int(round(image.width * (patches.height / image.height), 7))
    return Size(patches.width - 2 * ((patches.width - width) // 2), patches.height)
