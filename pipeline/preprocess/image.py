"""From an image's encoded bytes to upright RGB pixels, and from those to uint8 tiles."""

import io
import warnings
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from PIL import Image, UnidentifiedImageError
from torch.utils.dlpack import from_dlpack

from pipeline.preprocess.geometry import Anyres, Resample, scaled_size, select_grid
from pipeline.preprocess.kinds import kind_of, without_bytes
from schemas.errors import Refused, RowError
from schemas.sample import Size, Tiles

# Only formats whose decoders are compiled and work on the given bytes alone: of the others some take minutes for a file
# of a few bytes, being loops in Python (DDS, QOI), TGA has no signature, and for EPS Pillow starts Ghostscript.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "AVIF", "JPEG2000", "PPM", "ICO")
MOST_PIXELS = 178_956_970  # where Pillow itself refuses, whatever limit is asked for
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

    def __post_init__(self) -> None:
        if self.max_bytes < 1:
            raise Refused(f"max_bytes must be at least 1, got {self.max_bytes}")
        if not 1 <= self.max_pixels <= MOST_PIXELS:
            raise Refused(f"max_pixels must be between 1 and {MOST_PIXELS}, got {self.max_pixels}")


def decode(data: bytes, limits: ImageLimits) -> Image.Image:
    """The first frame, upright and in RGB; what is transparent is shown on white, 16 bits are scaled to 8.

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
            said = f"{type(error).__name__}: {without_bytes(str(error))}"
            raise RowError("decode", "BrokenImage", f"the image cannot be decoded: {said}") from error


def tile_image(image: Image.Image, anyres: Anyres) -> Tiles:
    """The tiles of an RGB image, (num_tiles, tile, tile, 3): base tile first, then the grid's, row by row.

    The base tile holds the whole image, its aspect not kept; the grid holds it scaled and centred on black.
    Normalised, they are bit for bit those of transformers' torchvision backend.
    """
    size = Size(image.width, image.height)
    grid = select_grid(size, anyres)
    scaled = scaled_size(size, grid)
    pixels = _pixels(image)
    canvas = torch.zeros((grid.height, grid.width, 3), dtype=torch.uint8)
    left, top = (grid.width - scaled.width) // 2, (grid.height - scaled.height) // 2
    canvas[top : top + scaled.height, left : left + scaled.width] = _resized(pixels, scaled, anyres.resample)

    tile = anyres.tile
    cut = canvas.view(grid.height // tile, tile, grid.width // tile, tile, 3).transpose(1, 2)
    tiles = torch.empty((1 + cut.shape[0] * cut.shape[1], tile, tile, 3), dtype=torch.uint8)
    tiles[0] = _resized(pixels, Size(tile, tile), anyres.resample)
    tiles[1:].view(cut.shape).copy_(cut)
    return tiles.numpy()


def _decode(data: bytes, limits: ImageLimits) -> Image.Image:
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        if image.width * image.height > limits.max_pixels:
            size = f"{image.width}x{image.height}"
            message = f"the image has {size} pixels, the limit is {limits.max_pixels} in all"
            raise RowError("decode", "TooManyPixels", message)
        image.load()
        orientation = image.getexif().get(ORIENTATION)
        upright = image.transpose(UPRIGHT[orientation]) if orientation in UPRIGHT else image
        return _to_rgb(upright)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = _to_8_bits(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 or 32 bits or floats as 8 bits, scaled: Pillow would clip, and show nearly everything as white.

    16 bits are always the full range; 32 bits and floats say nothing of theirs, so the largest value decides.
    """
    values = np.array(image, np.float32)
    np.nan_to_num(values, copy=False, posinf=0.0, neginf=0.0)
    largest = float(values.max())
    if image.mode == "F":
        white = max(1.0, largest)
    elif image.mode == "I":
        white = 255.0 if largest <= 255 else max(65535.0, largest)
    else:
        white = 65535.0
    clear = values == image.info["transparency"] if "transparency" in image.info else None
    grey = np.rint(values.clip(min=0, out=values) * (255 / white)).astype(np.uint8)
    if clear is not None:
        grey[clear] = 255
    return Image.fromarray(grey)


def _pixels(image: Image.Image) -> torch.Tensor:
    """The image's pixels as (1, channels, height, width), the channels side by side in memory; at least RGB.

    Pillow keeps RGB in four bytes a pixel. Arrow borrows that memory, where it is in one piece, instead of copying.
    """
    try:
        flat = from_dlpack(pa.array(image).values)
    except ValueError:  # a large image is kept in several pieces
        flat = torch.from_numpy(np.array(image))
    return flat.view(1, image.height, image.width, -1).permute(0, 3, 1, 2)


def _resized(pixels: torch.Tensor, size: Size, resample: Resample) -> torch.Tensor:
    """The pixels at another size, (height, width, 3)."""
    if pixels.shape[2:] != (size.height, size.width):
        shape = [size.height, size.width]
        pixels = torch.nn.functional.interpolate(pixels, size=shape, mode=resample, antialias=True)
    return pixels[0, :3].permute(1, 2, 0)
