"""Pages are drawn in a process of their own: what swells, hangs or crashes there costs the page alone."""

import zlib
from pathlib import Path

import numpy as np
import psutil
import pytest

from pipeline.preprocess.page_renderer import PageRenderer
from pipeline.preprocess.pdf import PdfPage, render_page
from schemas.errors import RowError
from tests.pdfs import encrypted_pdf, pdf

pytest.importorskip("pypdfium2")


def renderer(seconds: float = 60, max_pixels: int = 10**8, max_aspect: float = 1000) -> PageRenderer:
    return PageRenderer(max_pixels=max_pixels, max_aspect=max_aspect, seconds=seconds)


def page(data: bytes, number: int = 1, dpi: int = 72) -> PdfPage:
    return PdfPage(data=data, page=number, dpi=dpi)


def file_of(*objects: bytes) -> bytes:
    """A PDF of one page of 200 by 200 points: its content, then objects 5, 6, ..."""
    own = b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 200 200]/Contents 4 0 R/Resources<</XObject<</F 5 0 R>>>>>>"
    data, starts = b"%PDF-1.7\n", []
    tree = (b"<</Type/Catalog/Pages 2 0 R>>", b"<</Type/Pages/Kids[3 0 R]/Count 1>>", own)
    for number, each in enumerate((*tree, *objects), 1):
        starts.append(len(data))
        data += b"%d 0 obj\n%s\nendobj\n" % (number, each)
    entries = b"".join(b"%010d 00000 n \n" % start for start in starts)
    end = b"trailer <</Size %d/Root 1 0 R>>\nstartxref\n%d\n%%%%EOF" % (len(starts) + 1, len(data))
    return data + b"xref\n0 %d\n0000000000 65535 f \n" % (len(starts) + 1) + entries + end


def stream(data: bytes, more: bytes = b"") -> bytes:
    return b"<</Length %d %s>>stream\n%s\nendstream" % (len(data), more, data)


def nested(depth: int) -> bytes:
    """Forms that each draw the next ten times over."""
    more = b"/Type/XObject/Subtype/Form/BBox[0 0 200 200]/Resources<</XObject<</F %d 0 R>>>>"
    return file_of(stream(b"/F Do"), *(stream(b"/F Do " * 10, more % (number + 6)) for number in range(depth)))


def swollen(num_bytes: int) -> bytes:
    """A content stream of so many spaces, packed twice."""
    packer = zlib.compressobj(9)
    packed = b"".join(packer.compress(b" " * 2**24) for _ in range(num_bytes >> 24)) + packer.flush()
    return file_of(stream(zlib.compress(packed, 9), b"/Filter[/FlateDecode/FlateDecode]"))


def test_pages_are_counted_from_bytes_and_from_a_path(tmp_path: Path) -> None:
    path = tmp_path / "caf\udce9 1.pdf"
    path.write_bytes(pdf(5))
    count = renderer().count
    assert (count(pdf(3)), count(str(path)), count(pdf(1))) == (3, 5, 1)


def test_a_file_whose_pages_cannot_be_counted_says_why_and_the_next_can() -> None:
    count = renderer().count
    for data, type in ((encrypted_pdf(), "EncryptedPdf"), (b"no pdf", "BrokenPdf")):
        with pytest.raises(RowError, match=type):
            count(data)
    assert count(pdf(2)) == 2


def test_a_page_is_the_one_that_is_drawn_in_this_process() -> None:
    draw, data = renderer(), pdf(3, lines=2)
    for number in (1, 3, 2):
        assert np.array_equal(draw(page(data, number)), render_page(page(data, number), 10**8))


def test_a_page_that_takes_too_long_costs_itself_alone() -> None:
    draw, others = renderer(seconds=5), set(psutil.Process().children())
    assert draw(page(pdf(1))).size == (200, 100)
    (drawing,) = set(psutil.Process().children()) - others
    drawing.suspend()  # as a page that takes for ever, however fast the machine is
    with pytest.raises(RowError, match="TimedOut: the file took more than 5 s"):
        draw(page(pdf(1)))
    assert draw(page(pdf(2), 2)).size == (200, 100)


def test_a_page_that_draws_itself_over_and_over_costs_itself_alone() -> None:
    draw = renderer(seconds=5)
    assert draw(page(pdf(1))).size == (200, 100)
    with pytest.raises(RowError, match="TimedOut|PageCrashed|TooMuchMemory"):  # a fast machine runs out of memory first
        draw(page(nested(10)))
    assert draw(page(pdf(2), 2)).size == (200, 100)


@pytest.mark.skipif("sys.platform != 'linux'", reason="only Linux bounds a process's memory")
def test_a_page_that_swells_costs_itself_alone() -> None:
    draw = renderer()
    with pytest.raises(RowError, match="PageCrashed|TooMuchMemory|BrokenPdf"):
        draw(page(swollen(2**30)))
    assert draw(page(pdf(1))).size == (200, 100)


@pytest.mark.parametrize(("data", "number", "dpi", "type"), [
    pytest.param(pdf(3), 4, 72, "PageMissing", id="missing"),
    pytest.param(b"%PDF-1.4 and then nothing", 1, 72, "BrokenPdf", id="broken"),
    pytest.param(encrypted_pdf(), 1, 72, "EncryptedPdf", id="encrypted"),
    pytest.param(pdf(1), 1, 1200, "TooManyPixels", id="large"),
    pytest.param(pdf(1, width=3000, height=1), 1, 72, "AspectTooLarge", id="thin"),
])  # fmt: skip
def test_what_is_wrong_with_a_page_comes_through(data, number, dpi, type) -> None:
    draw = renderer(max_pixels=100_000)
    with pytest.raises(RowError, match=type):
        draw(page(data, number, dpi))
    assert draw(page(pdf(1))).size == (200, 100)
