"""Pixels: what a checkpoint's image processor does to a picture, where we do the same; anything else is refused."""

import math
from dataclasses import dataclass
from typing import Any, TypeAlias

from pipeline.preprocess.geometry import Anyres, Resample
from schemas.errors import Refused

# transformers' image processor, of whichever backend: its settings are attributes, of whatever type a file gave them.
ImageProcessor: TypeAlias = Any

_RESAMPLES: dict[int | None, Resample] = {2: "bilinear", 3: "bicubic", None: "bilinear"}  # by Pillow's numbers


@dataclass(frozen=True, slots=True, kw_only=True)
class PixelScale:
    """Turns a tile's levels, 0 to 255, into what the vision tower sees: multiplied by `factor`, then less `mean` and
    divided by `std`, a number a channel. None leaves a step out."""

    factor: float | None
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pixels:
    """Holds what an image processor's settings come to."""

    resample: Resample
    scale: PixelScale


def read_pixels(images: ImageProcessor, anyres: Anyres) -> Pixels:
    """Read the settings of transformers' image processor for a network that cuts by `anyres`.

    Raises Refused, with the setting's name, for what transformers would fail at and for what we do not do as it does.
    do_pad, do_convert_rgb and a second resize or crop to the tile's own size change no tile, and neither do settings
    that transformers does not know.
    """
    kind = type(images).__name__.removesuffix("Pil")
    if kind != "LlavaNextImageProcessor":
        raise Refused(f"image_processor_type must be LlavaNextImageProcessor, got {kind}")
    _check_sizes(images, anyres.tile)
    _check_grids(images.image_grid_pinpoints, anyres)
    resample = images.resample
    if not isinstance(resample, int | None) or resample not in _RESAMPLES:
        raise _refuse("resample", "2 (bilinear) or 3 (bicubic)", resample)
    return Pixels(resample=_RESAMPLES[resample], scale=read_scale(images))


def read_scale(images: ImageProcessor) -> PixelScale:
    """Read how levels become numbers; raises Refused."""
    factor = images.rescale_factor if images.do_rescale else None
    if images.do_rescale and not (_is_number(factor) and factor):
        raise _refuse("rescale_factor", "a number other than 0 where do_rescale is set", factor)
    if not images.do_normalize:
        return PixelScale(factor=factor, mean=None, std=None)
    mean, std = (_by_channel(name, getattr(images, name)) for name in ("image_mean", "image_std"))
    if 0.0 in std:
        raise _refuse("image_std", "three numbers other than 0", images.image_std)
    return PixelScale(factor=factor, mean=mean, std=std)


def _check_sizes(images: ImageProcessor, tile: int) -> None:
    """Raise Refused unless the base tile and the grid's tiles come out as the vision tower takes them."""
    size = {name: value for name, value in dict(images.size or {}).items() if value is not None}
    if size not in ({"shortest_edge": tile}, {"height": tile, "width": tile}):
        raise _refuse("size", f"the {tile} pixels of the config's vision tower", size)
    crop = {name: value for name, value in dict(images.crop_size or {}).items() if value is not None}
    if crop != {"height": tile, "width": tile} and (crop or images.do_center_crop):
        raise _refuse("crop_size", f"the {tile} pixels of the config's vision tower", crop)


def _check_grids(pinpoints: object, anyres: Anyres) -> None:
    wanted = [[grid.height, grid.width] for grid in anyres.grids]
    pairs = pinpoints if isinstance(pinpoints, list | tuple) else ()
    if [list(pair) if isinstance(pair, list | tuple) else pair for pair in pairs] != wanted:
        raise _refuse("image_grid_pinpoints", f"those of config.json, {wanted}", pinpoints)


def _by_channel(name: str, value: object) -> tuple[float, ...]:
    numbers = (value,) * 3 if _is_number(value) else tuple(value) if isinstance(value, list | tuple) else ()
    if len(numbers) != 3 or not all(map(_is_number, numbers)):
        raise _refuse(name, "a number for each of three channels where do_normalize is set", value)
    return numbers


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _refuse(name: str, rule: str, value: object) -> Refused:
    return Refused(f"the image processor's {name} must be {rule}, got {value!r}")
