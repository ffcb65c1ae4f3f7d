"""A page is cut along white space, into strips as tall as a view, and no ink is lost between them."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from pipeline.preprocess.geometry import Anyres, scaled_size, select_grid
from pipeline.preprocess.ink import ink_rows
from pipeline.preprocess.strips import MOST_STRIPS, cut_page, cut_rows, strip_height
from schemas.errors import RowError
from schemas.sample import Size

ANYRES = Anyres(
    tile=336, patch=14, grids=tuple(Size(336 * w, 336 * h) for h, w in ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3)))
)
LINE, LEADING = 20, 34  # rows of a line's letters, and from one line to the next


def printed(num_lines: int, width: int = 1240, paper: int = 255) -> Image.Image:
    """A page of lines of boxes where letters would be."""
    page = Image.new("L", (width, 100 + num_lines * LEADING), paper)
    draw = ImageDraw.Draw(page)
    for line in range(num_lines):
        top = 50 + line * LEADING
        for left in range(60, width - 60, 16):
            draw.rectangle((left, top, left + 9, top + LINE - 1), fill=255 - paper)
    return page


def random_page(seed: int) -> np.ndarray:
    """Rows of ink in runs of any length, from single rules to blocks without a gap."""
    rng = np.random.default_rng(seed)
    runs = [np.full(rng.integers(1, 400 if seed % 3 else 40), bool(i % 2)) for i in range(rng.integers(1, 60))]
    return np.concatenate(runs)


@pytest.mark.parametrize("seed", range(60))
@pytest.mark.parametrize("height", [40, 113, 413])
def test_every_row_of_ink_is_in_a_strip_and_their_order_is_kept(seed: int, height: int) -> None:
    ink = random_page(seed)
    spans = cut_rows(ink, height)
    seen = np.zeros(len(ink), bool)
    for span in spans:
        assert 0 <= span.top < span.bottom <= len(ink)
        assert span.bottom - span.top <= height
        assert ink[span.top : span.bottom].any()
        seen[span.top : span.bottom] = True
    assert not (ink & ~seen).any()
    assert [span.top for span in spans] == sorted({span.top for span in spans})
    assert [span.bottom for span in spans] == sorted({span.bottom for span in spans})


@pytest.mark.parametrize("seed", range(60))
def test_every_line_that_is_not_taller_than_the_overlap_is_whole_in_a_strip(seed: int) -> None:
    ink, height = random_page(seed), 200
    spans = cut_rows(ink, height)
    starts = np.flatnonzero(ink & ~np.roll(ink, 1) | ink & (np.arange(len(ink)) == 0))
    for start in starts.tolist():
        end = next((row for row in range(start, len(ink)) if not ink[row]), len(ink))
        if end - start <= height // 5:
            assert any(span.top <= start and end <= span.bottom for span in spans)


def test_lines_of_print_are_cut_between_and_never_through() -> None:
    page = printed(60)
    spans = cut_page(page, ANYRES)
    lines = [(50 + i * LEADING, 50 + i * LEADING + LINE) for i in range(60)]
    homes = [[i for i, span in enumerate(spans) if span.top <= top and bottom <= span.bottom] for top, bottom in lines]
    assert all(len(home) == 1 for home in homes)
    assert len(spans) == 5


def test_a_page_without_white_space_is_cut_into_strips_that_overlap() -> None:
    spans = cut_rows(np.ones(1000, bool), 400)
    assert [(span.top, span.bottom) for span in spans] == [(0, 400), (320, 720), (640, 1000)]


def test_strips_are_shown_larger_than_the_whole_page() -> None:
    page = printed(60)
    whole = scaled_size(Size(*page.size), select_grid(Size(*page.size), ANYRES)).width / page.width
    for span in cut_page(page, ANYRES):
        strip = Size(page.width, span.bottom - span.top)
        assert scaled_size(strip, select_grid(strip, ANYRES)).width / page.width > 1.9 * whole


@pytest.mark.parametrize(
    ("width", "height", "strip"),
    [
        pytest.param(300, 400, None, id="fits a view"),
        pytest.param(672, 672, None, id="fills a view"),
        pytest.param(700, 680, None, id="hardly larger than a view"),
        pytest.param(2000, 300, None, id="a wide line"),
        pytest.param(330, 4000, 1008, id="a receipt"),
        pytest.param(1240, 1754, 413, id="A4 at 150 dpi"),
        pytest.param(2480, 3508, 826, id="A4 at 300 dpi"),
    ],
)
def test_a_page_is_cut_where_its_strips_are_seen_larger(width: int, height: int, strip: int | None) -> None:
    assert strip_height(Size(width, height), ANYRES) == strip


@pytest.mark.parametrize("paper", [255, 0, 200, 90])
def test_ink_is_what_differs_from_its_paper(paper: int) -> None:
    ink = ink_rows(printed(3, paper=paper) if paper in (0, 255) else Image.new("L", (400, 100), paper))
    assert ink.sum() == (3 * LINE if paper in (0, 255) else 0)


def test_dust_is_no_ink_and_an_empty_page_has_no_strips() -> None:
    page = Image.new("L", (1240, 1754), 255)
    for row in range(0, 1754, 7):
        page.putpixel((row % 1240, row), 0)
    assert not ink_rows(page).any()
    assert cut_page(page, ANYRES) == ()


def test_blank_paper_is_read_by_nobody() -> None:
    ink = np.zeros(5000, bool)
    ink[[100, 4000]] = True
    assert [(span.top, span.bottom) for span in cut_rows(ink, 400)] == [(92, 109), (3992, 4009)]


def test_a_page_of_too_many_strips_is_an_error_that_says_so() -> None:
    endless = Image.new("L", (1000, 40_000))
    endless.paste(Image.effect_noise((1000, 40_000), 200))
    with pytest.raises(RowError, match=f"TooManyStrips: .* at most {MOST_STRIPS} strips, 1000x40000 pixels take "):
        cut_page(endless, ANYRES)
