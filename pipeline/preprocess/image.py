"""From an image's encoded bytes to upright RGB pixels, and from those to uint8 tiles."""

import io
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from PIL import Image, UnidentifiedImageError
from torch.utils.dlpack import from_dlpack

from pipeline.preprocess.geometry import Anyres, Resample, scaled_size, select_grid
from pipeline.preprocess.kinds import kind_of, without_bytes
from schemas.errors import Refused, RowError
from schemas.sample import Size, Tiles

Room: TypeAlias = Callable[[tuple[int, ...]], Tiles]  # memory of a shape, for tiles to be written to

# Only formats whose decoders are compiled and work on the given bytes alone: of the others some take minutes for a file
# of a few bytes, being loops in Python (DDS, QOI), TGA has no signature, and for EPS Pillow starts Ghostscript.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "AVIF", "JPEG2000", "PPM", "ICO")
MOST_PIXELS = 178_956_970  # where Pillow itself refuses, whatever limit is asked for
_BAND = 2**22  # pixels that are converted at once
_SCANS = 32  # of a JPEG of any size; encoders write some 10
_SCANNED_PIXELS = 4_000_000_000  # over all scans of a JPEG that has more: some seconds
_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")  # in a scan FF 00 is a byte of it, FF D0 to FF D7 divide it
_SCAN, _END, _ALONE = 0xDA, 0xD9, (0x01, 0xD8)
ORIENTATION = 0x0112  # the EXIF tag
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageLimits:
    """The largest image that is decoded: its encoded bytes, and the pixels that its header announces."""

    max_bytes: int = 64 * 2**20
    max_pixels: int = 100_000_000  # 300 MB once decoded
    max_aspect: float = 1000  # of the longer side to the shorter: resizing holds all rows at a tile's width
    page_seconds: float = 30  # for drawing a page of a PDF

    def __post_init__(self) -> None:
        if self.max_bytes < 1:
            raise Refused(f"max_bytes must be at least 1, got {self.max_bytes}")
        if self.max_aspect < 1:
            raise Refused(f"max_aspect must be at least 1, got {self.max_aspect}")
        if not 1 <= self.max_pixels <= MOST_PIXELS:
            raise Refused(f"max_pixels must be between 1 and {MOST_PIXELS}, got {self.max_pixels}")


def decode(data: bytes | memoryview, limits: ImageLimits) -> Image.Image:
    """Return the first frame, upright and in RGB; what is transparent is shown on white, 16 bits are scaled to 8.

    Not safe to call from several threads at once before Python 3.14: hiding warnings changes the whole process.
    """
    if not data:
        raise RowError("decode", "EmptyImage", "the image has no bytes")
    if len(data) > limits.max_bytes:
        raise RowError("decode", "TooManyBytes", f"the image has {len(data)} bytes, the limit is {limits.max_bytes}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of odd metadata, and of sizes that our own limit allows
        try:
            return _decode(data, limits)
        except RowError:
            raise
        except UnidentifiedImageError as error:  # its own text holds a memory address: another one in every run
            message = f"the bytes look like {kind_of(data)}, they are no readable {', '.join(FORMATS)}"
            raise RowError("decode", "NotAnImage", message) from error
        except Image.DecompressionBombError as error:
            raise RowError("decode", "TooManyPixels", str(error)) from error
        except Exception as error:  # Pillow's decoders raise OSError, ValueError, SyntaxError, struct.error and more
            raise broken_image(error) from error


def broken_image(error: Exception) -> RowError:
    """Return what is said of an image that Pillow cannot decode."""
    said = f"{type(error).__name__}: {without_bytes(str(error))}"
    return RowError("decode", "BrokenImage", f"the image cannot be decoded: {said}")


def tile_image(image: Image.Image, anyres: Anyres, room: Room | None = None) -> Tiles:
    """Return the tiles of an RGB image, (num_tiles, tile, tile, 3): base tile first, then the grid's, row by row.

    The base tile holds the whole image, its aspect not kept; the grid holds it scaled and centred on black.
    Normalised, they are bit for bit those of transformers' torchvision backend. They are written to `room`, where one
    is given.
    """
    size = Size(image.width, image.height)
    grid, tile, pixels = select_grid(size, anyres), anyres.tile, _pixels(image)
    shape = (1 + (grid.height // tile) * (grid.width // tile), tile, tile, 3)
    tiles = np.empty(shape, np.uint8) if room is None else room(shape)
    _copy(_resized(pixels, Size(tile, tile), anyres.resample), tiles[0])
    _cut(_resized(pixels, scaled_size(size, grid), anyres.resample), grid, tiles[1:])
    return tiles


def _cut(pixels: Tiles, grid: Size, tiles: Tiles) -> None:
    """Write the pixels, centred on black, to the tiles of a grid."""
    tile, (height, width, _) = tiles.shape[1], pixels.shape
    if (width, height) != (grid.width, grid.height):
        tiles[...] = 0
    corners = product(range(0, grid.height, tile), range(0, grid.width, tile))
    for cell, (top, left) in zip(tiles, corners, strict=True):
        rows, own_rows = _shared(top - (grid.height - height) // 2, tile, height)
        columns, own_columns = _shared(left - (grid.width - width) // 2, tile, width)
        _copy(pixels[rows, columns], cell[own_rows, own_columns])


def _shared(first: int, size: int, whole: int) -> tuple[slice, slice]:
    """Return what the range of `size` from `first` on has of 0 to `whole`: there, and counted from `first`."""
    start, stop = max(0, first), max(0, first, min(first + size, whole))
    return slice(start, stop), slice(start - first, stop - first)


def _copy(pixels: Tiles, target: Tiles) -> None:
    """Copy channel by channel: pixels of three bytes out of four, copied one by one, take five times as long."""
    for channel in range(3):
        target[..., channel] = pixels[..., channel]


def check_aspect(size: Size, most: float) -> None:
    """Raise RowError where one side is too many times the other."""
    longer, shorter = max(size.width, size.height), min(size.width, size.height)
    if longer > most * shorter:
        message = f"one side is {longer / max(1, shorter):.0f} times the other, {size.width}x{size.height} pixels"
        raise RowError("decode", "AspectTooLarge", f"{message}; the limit is {most:g} (--max-image-aspect)")


def _check_scans(data: bytes | memoryview, num_pixels: int) -> None:
    """Raise RowError for a JPEG that goes over its pixels so often that a small file takes minutes."""
    most = max(_SCANS, _SCANNED_PIXELS // num_pixels)
    if _most_scans(data) > most and (found := sum(1 for _ in _scans(data))) > most:
        message = f"the JPEG has {found} scans over {num_pixels} pixels, the limit is {most}: encode it again"
        raise RowError("decode", "TooManyScans", message)


def _most_scans(data: bytes | memoryview) -> int:
    """Return how often the start of a scan could be meant: metadata and pixels may hold the same two bytes."""
    values = np.frombuffer(data, np.uint8)
    return int(np.count_nonzero((values[:-1] == 0xFF) & (values[1:] == 0xDA)))


def _scans(data: bytes | memoryview) -> Iterator[int]:
    """Return the offsets of the scans of the first picture in a JPEG file."""
    found = _MARKER.search(data, 2)
    while found is not None and found[0][1] != _END:
        length = int.from_bytes(data[found.end() : found.end() + 2], "big")
        if found[0][1] == _SCAN:
            yield found.start()
        found = _MARKER.search(data, found.end() + (0 if found[0][1] in _ALONE else max(2, length)))


def _decode(data: bytes | memoryview, limits: ImageLimits) -> Image.Image:
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        if image.width * image.height > limits.max_pixels:
            size = f"{image.width}x{image.height}"
            message = f"the image has {size} pixels, the limit is {limits.max_pixels} in all"
            raise RowError("decode", "TooManyPixels", message)
        check_aspect(Size(image.width, image.height), limits.max_aspect)
        if image.format in ("JPEG", "MPO"):
            _check_scans(data, image.width * image.height)
        image.load()
        orientation = image.getexif().get(ORIENTATION)
        upright = image.transpose(UPRIGHT[orientation]) if orientation in UPRIGHT else image
        return _to_rgb(upright)


def _to_rgb(image: Image.Image, band: int = _BAND) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        white = _white_of(image, band)
        image = _joined((_to_8_bits(rows, white) for rows in _bands(image, band)), image.size)
    if image.has_transparency_data:
        return _joined(map(_on_white, _bands(image, band)), image.size)
    return image.convert("RGB")


def _bands(image: Image.Image, num_pixels: int) -> Iterator[Image.Image]:
    """Yield the image some rows at a time: what a conversion takes on its way is several times what it is given."""
    rows = max(1, num_pixels // image.width)
    for top in range(0, image.height, rows):
        yield image.crop((0, top, image.width, min(top + rows, image.height)))


def _joined(bands: Iterator[Image.Image], size: tuple[int, int]) -> Image.Image:
    """Return the image that these bands make, top to bottom; of the mode that they have."""
    first = next(bands)
    if first.size == size:
        return first
    whole, top = Image.new(first.mode, size), first.height
    whole.paste(first)
    for band in bands:
        whole.paste(band, (0, top))
        top += band.height
    return whole


def _on_white(image: Image.Image) -> Image.Image:
    image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image).convert("RGB")


def _white_of(image: Image.Image, band: int) -> float:
    """Return the value of white in an image of 16 or 32 bits or floats.

    16 bits are always the full range; 32 bits and floats say nothing of theirs, so the largest value decides.
    """
    if image.mode not in ("I", "F"):
        return 65535.0
    largest = max(float(_numbers(rows).max()) for rows in _bands(image, band))
    if image.mode == "F":
        return max(1.0, largest)
    return 255.0 if largest <= 255 else max(65535.0, largest)


def _numbers(image: Image.Image) -> npt.NDArray[np.float32]:
    values = np.array(image, np.float32)
    np.nan_to_num(values, copy=False, posinf=0.0, neginf=0.0)
    return values


def _to_8_bits(image: Image.Image, white: float) -> Image.Image:
    """Return grey of 16 or 32 bits or floats as 8 bits, scaled: Pillow would clip, and show nearly everything as
    white."""
    values = _numbers(image)
    clear = values == image.info["transparency"] if "transparency" in image.info else None
    grey = np.rint(values.clip(min=0, out=values) * (255 / white)).astype(np.uint8)
    if clear is not None:
        grey[clear] = 255
    return Image.fromarray(grey)


def _pixels(image: Image.Image) -> torch.Tensor:
    """Return the image's pixels as (1, channels, height, width), the channels side by side in memory; at least RGB.

    Pillow keeps RGB in four bytes a pixel. Arrow borrows that memory, where it is contiguous, instead of copying.
    """
    try:
        flat = _borrowed(image)
    except ValueError:  # a large image is kept in several blocks
        flat = torch.empty(image.width * image.height * 4, dtype=torch.uint8)
        done = 0
        for band in _bands(image, _BAND // 4):
            size = band.width * band.height * 4
            flat[done : done + size] = _borrowed(band)
            done += size
    return flat.view(1, image.height, image.width, -1).permute(0, 3, 1, 2)


def _borrowed(image: Image.Image) -> torch.Tensor:
    return from_dlpack(pa.array(image).values)


def _resized(pixels: torch.Tensor, size: Size, resample: Resample) -> Tiles:
    """Return the pixels at another size, (height, width, 3)."""
    if pixels.shape[2:] != (size.height, size.width):
        shape = [size.height, size.width]
        pixels = torch.nn.functional.interpolate(pixels, size=shape, mode=resample, antialias=True)
    return pixels[0, :3].permute(1, 2, 0).numpy()
