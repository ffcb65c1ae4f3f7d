"""Thumbnails: small pictures of a run's images as data URIs, made under the limits that the run decodes under."""

import base64
import io
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby, islice

from PIL import Image

from pipeline.exports.images import Pictures
from pipeline.preprocess.image import ImageLimits, decode
from schemas.errors import RowError
from schemas.request import Request

_SIZES = ((320, 70), (256, 60), (256, 40), (192, 35), (128, 25), (64, 20))  # longest side and quality, until it fits
_BYTES = 17 * 2**20  # of all thumbnails together, as text
_LARGEST = 60_000  # of one
_THREADS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Thumbnail:
    """The picture of a row, counted from 0: a data URI, or why there is none."""

    row: int
    uri: str | None
    reason: str | None = None


def make_thumbnails(pictures: Pictures, rows: Sequence[int]) -> Iterator[Thumbnail]:
    """Yield a thumbnail for each of these input rows, in their order."""
    most = min(_LARGEST, _BYTES // max(1, len(rows)))
    with ThreadPoolExecutor(_THREADS) as pool:
        for unit, of_unit in groupby(rows, key=lambda row: row // pictures.unit_rows):
            requests = pictures.requests(unit)
            wanted = iter(list(of_unit))
            while some := list(islice(wanted, _THREADS)):
                asked = [requests[row - unit * pictures.unit_rows] for row in some]
                found = pool.map(lambda request: _fetch(pictures, request), asked)  # what is decoded is one at a time
                for row, data in zip(some, found, strict=True):
                    yield _thumbnail(row, data, pictures.limits, most)


def shrink(image: Image.Image, most: int) -> str:
    """Return a picture as a data URI of at most `most` characters, or the smallest there is; it is used up."""
    uri = ""
    for side, quality in _SIZES:
        image.thumbnail((side, side))  # each from the one before: of a large photograph the first takes the time
        out = io.BytesIO()
        image.save(out, "WEBP", quality=quality)
        uri = f"data:image/webp;base64,{base64.b64encode(out.getvalue()).decode()}"
        if len(uri) <= most:
            break
    return uri


def _fetch(pictures: Pictures, request: Request) -> bytes | RowError:
    try:
        images = pictures.encoded(request)
    except RowError as error:
        return error
    return images[0] if images else RowError("read", "NoImage", "the row has no image")


def _thumbnail(row: int, data: bytes | RowError, limits: ImageLimits, most: int) -> Thumbnail:
    try:
        if isinstance(data, RowError):
            raise data
        return Thumbnail(row=row, uri=shrink(decode(data, limits), most))
    except RowError as error:
        return Thumbnail(row=row, uri=None, reason=f"{error.failure.type}: {error.failure.message}")
