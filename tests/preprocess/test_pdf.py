"""PDFs as input: a row a page, rendered where images are decoded, and a reason where that cannot be."""

from pathlib import Path

import numpy as np
import pytest

from pipeline.preprocess.pdf import PageUri, PdfPage, count_pages, render_page, split_page_uri
from pipeline.sources.columns import ColumnChoices
from pipeline.sources.fetch import ImageFetcher
from pipeline.sources.listing import list_input
from pipeline.sources.reader import unit_reader
from pipeline.stages.preprocess import Preprocess
from schemas.errors import RowError
from schemas.job import JobSettings
from schemas.request import ImageRef
from schemas.sample import Sample, table_to_samples
from tests.images import encoded, noise
from tests.pdfs import GREYS, encrypted_pdf, pdf
from tests.tiny import checkpoint

pytest.importorskip("pypdfium2")
FILES = {
    "a/book.pdf": pdf(5),
    "b.PDF": pdf(1),
    "broken.pdf": b"%PDF-1.4 and then nothing",
    "locked.pdf": encrypted_pdf(),
    "photo.png": encoded(noise(50, 40)),
}


@pytest.fixture
def folder(tmp_path: Path) -> str:
    for name, data in FILES.items():
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return str(tmp_path / "in")


def samples_of(folder: str, limit: int | None = None, **changes: object) -> list[Sample]:
    base = {"input": (folder,), "output": "o", "model": str(checkpoint()), "max_new_tokens": 4, "prompt": ("What?",)}
    listing = list_input([folder], ColumnChoices(own_prompts=True), limit, 3)
    stage, read = Preprocess(JobSettings.model_validate({**base, **changes})), unit_reader(listing)
    return [sample for unit in range(listing.num_units) for sample in table_to_samples(stage(read(unit)))]


def test_every_page_is_a_row_called_after_its_file_and_number(folder: str) -> None:
    samples = samples_of(folder)
    pages = [f"a/book.pdf#page={number}" for number in range(1, 6)]
    assert [s.id for s in samples] == [*pages, "b.PDF#page=1", "broken.pdf#page=1", "locked.pdf#page=1", "photo.png"]
    assert [s.id for s in samples_of(folder, limit=4)] == pages[:4]
    greys = [int(np.median(sample.tiles[0])) for sample in samples[:5]]
    assert all(abs(grey - wanted) <= 2 for grey, wanted in zip(greys, GREYS, strict=True))


def test_a_pdf_that_cannot_be_read_is_an_error_row_with_its_reason(folder: str) -> None:
    failures = {s.id: s.prompts[0].failure for s in samples_of(folder)}
    assert {id: failure.type for id, failure in failures.items() if failure} == {
        "broken.pdf#page=1": "BrokenPdf",
        "locked.pdf#page=1": "EncryptedPdf",
    }
    locked = failures["locked.pdf#page=1"]
    assert locked is not None
    assert locked.message == "the PDF is encrypted and asks for a password: store it without one"


@pytest.mark.parametrize(("dpi", "size"), [(72, (200, 100)), (150, (417, 209)), (300, (834, 417))])
def test_the_dpi_decides_the_size_in_pixels(folder: str, dpi: int, size: tuple[int, int]) -> None:
    (first, *_) = samples_of(folder, limit=1, pdf_dpi=dpi)
    assert (first.image_sizes[0].width, first.image_sizes[0].height) == pytest.approx(size, abs=1)


def test_a_page_of_too_many_pixels_is_never_rendered(folder: str) -> None:
    (first, *_) = samples_of(folder, limit=1, pdf_dpi=1200, max_image_pixels=1000)
    failure = first.prompts[0].failure
    assert failure is not None
    assert failure.type == "TooManyPixels"
    assert "at 1200 dpi, the limit is 1000 in all: lower --pdf-dpi" in failure.message


def test_a_file_is_fetched_once_for_its_pages(tmp_path: Path) -> None:
    path = tmp_path / "book.pdf"
    path.write_bytes(pdf(3))
    fetch = ImageFetcher(max_bytes=10**6, pdf_dpi=72)
    first = fetch(ImageRef(uri=f"{path}#page=1"))
    path.unlink()
    second = fetch(ImageRef(uri=f"{path}#page=2"))
    assert isinstance(first, PdfPage)
    assert isinstance(second, PdfPage)
    assert second.data is first.data
    assert second.sha256() != first.sha256()


def test_a_pdf_above_the_limit_of_bytes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "book.pdf"
    path.write_bytes(pdf(3))
    with pytest.raises(RowError, match="TooLarge"):
        ImageFetcher(max_bytes=100, pdf_dpi=72)(ImageRef(uri=f"{path}#page=1"))


def test_a_page_that_is_gone_is_an_error_that_says_so() -> None:
    with pytest.raises(RowError, match="PageMissing: the PDF must have a page 4, it has 3"):
        render_page(PdfPage(data=pdf(3), page=4, dpi=72), max_pixels=10**6)


def test_pages_are_counted_from_bytes_and_from_an_open_file(tmp_path: Path) -> None:
    path = tmp_path / "book.pdf"
    path.write_bytes(pdf(5))
    with path.open("rb") as file:
        assert (count_pages(file), count_pages(path.read_bytes())) == (5, 5)


@pytest.mark.parametrize(
    ("uri", "page"),
    [
        ("s3://b/a.pdf#page=3", PageUri(file="s3://b/a.pdf", page=3)),
        ("a.PDF#page=12", PageUri(file="a.PDF", page=12)),
        ("a.pdf", None),
        ("a.pdf#page=0", None),
        ("a.png#page=3", None),
    ],
)
def test_a_uri_may_name_a_page(uri: str, page: PageUri | None) -> None:
    assert split_page_uri(uri) == page
