"""Images as Python has them: paths, URLs, bytes, Pillow's images, arrays of pixels."""

import io
import os
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from pipeline.preprocess.image import broken_image
from pipeline.storage import filesystem as fs
from schemas.errors import Refused
from schemas.request import ImageRef

Picture: TypeAlias = str | os.PathLike[str] | bytes | Image.Image | npt.NDArray[np.uint8]
_AS_THEY_ARE = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")  # modes that a PNG keeps


def pictures_in(value: object) -> list[Picture]:
    """Return the images of one row: None for no image, one, or several in order."""
    if value is None:
        return []
    if isinstance(value, str | bytes | os.PathLike | Image.Image | np.ndarray):
        return [value]
    if isinstance(value, Sequence):
        return [one for part in value for one in pictures_in(part)]
    raise Refused(
        f"an image must be a path, a URL, bytes, a Pillow image or an array of pixels, got {type(value).__name__}"
    )


def reference(picture: Picture) -> ImageRef:
    """Return what fetches the image: its encoded bytes, or where they are."""
    if isinstance(picture, bytes):
        return ImageRef(data=picture)
    if isinstance(picture, str | os.PathLike):
        url = os.fspath(picture)
        return ImageRef(uri=fs.absolute(url) if fs.is_local(url) and not url.startswith("data:") else url)
    return ImageRef(data=encoded(picture))


def encoded(pixels: Image.Image | npt.NDArray[Any]) -> bytes:
    """Return a PNG of the pixels, upright where the image says how it was turned.

    Raises Refused for an array of anything else than pixels, and RowError for an image that was opened and cannot be
    decoded, as Pillow reads a file when it is first looked at.
    """
    if isinstance(pixels, np.ndarray):
        return _as_png(_from_array(pixels))
    try:
        return _as_png(ImageOps.exif_transpose(pixels))
    except Exception as error:  # Pillow's plugins raise whatever they meet
        raise broken_image(error) from error


def _as_png(image: Image.Image) -> bytes:
    if image.mode not in _AS_THEY_ARE:
        image = image.convert("RGB")
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1)
    return file.getvalue()


def _from_array(pixels: npt.NDArray[Any]) -> Image.Image:
    shape = pixels.shape
    if pixels.dtype != np.uint8 or not (len(shape) == 2 or (len(shape) == 3 and shape[2] in (1, 3, 4))) or 0 in shape:
        raise Refused(
            f"an image's array must be uint8 pixels of (height, width) or (height, width, 1, 3 or 4), got "
            f"{pixels.dtype} of {shape}"
        )
    return Image.fromarray(pixels[..., 0] if len(shape) == 3 and shape[2] == 1 else pixels)
