"""Images: the pictures that a run's answers are about, fetched again from its input under the run's own limits."""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import pyarrow as pa

from pipeline.checkpoint import Pin
from pipeline.exports.rows import Run
from pipeline.preprocess.image import ImageLimits
from pipeline.preprocess.page_renderer import PageRenderer
from pipeline.preprocess.pdf import PdfPage
from pipeline.sources.fetch import fetcher_of
from pipeline.sources.named_images import images_of
from pipeline.sources.reader import unit_reader
from pipeline.verify import plan_of
from schemas.errors import Refused, RowError
from schemas.request import ImageRef, Request, table_to_requests

_SIGNATURES = (
    *((b"\xff\xd8\xff", "jpg"), (b"\x89PNG", "png"), (b"GIF8", "gif"), (b"BM", "bmp"), (b"II*\x00", "tiff")),
    *((b"MM\x00*", "tiff"), (b"\x00\x00\x00\x0cjP  ", "jp2"), (b"\x00\x00\x01\x00", "ico")),
)


class Pictures:
    """The input of a run, as it was when the run began; raises Refused where it is another one by now."""

    def __init__(self, run: Run) -> None:
        self.run = run
        plan = plan_of(run.folder, run.description, model=Pin(hash=""))  # the model may be gone
        if plan.listing.fingerprint() != run.description["identity"].get("input_hash"):
            raise Refused(
                f"the images of {run.folder} must be as they were when it began, its input has changed "
                "(llava-batch verify names the files): put it back, or export without images"
            )
        self.settings, self.num_prompts = plan.settings, plan.num_prompts
        self.unit_rows, self.num_units = plan.listing.unit_rows, plan.listing.num_units
        self._read = unit_reader(plan.listing)
        self._fetch = fetcher_of(plan.settings)

    @property
    def limits(self) -> ImageLimits:
        """Return the largest image that is decoded."""
        told = self.settings
        return ImageLimits(
            max_bytes=told.max_image_bytes, max_pixels=told.max_image_pixels, max_aspect=told.max_image_aspect
        )

    @cached_property
    def renderer(self) -> PageRenderer:
        """Return what draws pages of PDFs, in a process of its own."""
        limits = self.limits
        return PageRenderer(max_pixels=limits.max_pixels, max_aspect=limits.max_aspect, seconds=limits.page_seconds)

    def requests(self, unit: int) -> list[Request]:
        """Return the rows of a unit."""
        return table_to_requests(self._read(unit))

    def encoded(self, request: Request) -> list[bytes]:
        """Return the row's images as they are stored, pages of PDFs as PNG; raises RowError."""
        if request.failure is not None:
            raise RowError(request.failure.stage, request.failure.type, request.failure.message)
        return [self._encoded(image) for image in images_of(request, self.settings.image_root)]

    def _encoded(self, image: ImageRef) -> bytes:
        found = self._fetch(image)
        if not isinstance(found, PdfPage):
            return bytes(found)
        out = io.BytesIO()
        self.renderer(found).save(out, "PNG")
        return out.getvalue()


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitRows:
    """The answers of a unit, in the order of its rows; its requests are read where they are needed."""

    unit: int
    answers: pa.Table


def answers_by_unit(run: Run, unit_answers: int) -> Iterator[UnitRows]:
    """Yield the answers of each unit: so many together, but for the last."""
    waiting: list[pa.Table] = []
    unit, rows = 0, 0
    for table in run.batches():
        waiting.append(table)
        rows += table.num_rows
        while rows >= unit_answers:
            whole = pa.concat_tables(waiting)
            yield UnitRows(unit=unit, answers=whole.slice(0, unit_answers))
            waiting, rows, unit = [whole.slice(unit_answers)], rows - unit_answers, unit + 1
    if rows:
        yield UnitRows(unit=unit, answers=pa.concat_tables(waiting))


def suffix_of(data: bytes) -> str:
    """Return the suffix of an image's format by its first bytes; `img` for what is none that we read."""
    for signature, suffix in _SIGNATURES:
        if data.startswith(signature):
            return suffix
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    return "avif" if data[4:12] in (b"ftypavif", b"ftypavis") else "ppm" if data[:1] == b"P" else "img"
