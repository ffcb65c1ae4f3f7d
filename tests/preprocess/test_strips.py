"""A page is cut along white space, into strips as tall as a view, and no ink is lost between them."""

import random

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from benchmarks.strips import FRAMES, TEXTS, draw_page, read_page
from demo.checkpoint import DEMO, anyres_of
from pipeline.preprocess.geometry import Anyres, scaled_size, select_grid
from pipeline.preprocess.ink import ink_rows
from pipeline.preprocess.strips import MOST_STRIPS, cut_page, cut_rows, strip_height
from schemas.errors import RowError
from schemas.sample import Size

ANYRES = Anyres(
    tile=336, patch=14, grids=tuple(Size(336 * w, 336 * h) for h, w in ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3)))
)
DEMO_ANYRES = anyres_of(DEMO)
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


def lined(texts: list[str], colour: str = "black", paper: str = "white", pitch: int = 46) -> Image.Image:
    """Lines of text on a page of the demo model's size, the last half of them in a colour."""
    page = Image.new("RGB", (460, 40 + pitch * len(texts)), paper)
    first = "white" if paper == "black" else "black"
    for number, text in enumerate(texts):
        fill = colour if number >= len(texts) // 2 else first
        ImageDraw.Draw(page).text((16, 20 + pitch * number), text, fill=fill, font=ImageFont.load_default(size=28))
    return page


@pytest.mark.parametrize(
    ("colour", "paper"),
    [("#dcdcdc", "white"), ("#ececec", "white"), ("#ffff00", "white"), ("#0000ff", "black"), ("#ff0000", "#008200")],
)
def test_print_that_is_pale_or_as_bright_as_its_paper_is_ink(colour: str, paper: str) -> None:
    page = lined([f"Line number {i}" for i in range(18)], colour, paper)
    assert cut_page(page, DEMO_ANYRES)[-1].bottom >= 20 + 46 * 17 + 26
    assert ink_rows(page)[20 + 46 * 17 :].sum() > 15


@pytest.mark.parametrize("line", ["GRÖSSE ÜBER ÄMTER", "iii jij", "Ç Ş Ģ under", "ÉTÉ À NÎMES"])
@pytest.mark.parametrize("pitch", [36, 44, 60])
def test_a_border_never_parts_accents_from_their_letters(line: str, pitch: int) -> None:
    page = lined([line] * 16, pitch=pitch)
    bounds = [ImageDraw.Draw(page).textbbox((16, 20 + pitch * i), line, font_size=28) for i in range(16)]
    spans = cut_page(page, DEMO_ANYRES)
    assert len(spans) > 3
    for _, top, _, bottom in bounds:
        assert sum(span.top <= top and bottom <= span.bottom for span in spans) == 1


@pytest.mark.parametrize("frame", FRAMES)
@pytest.mark.parametrize("text", TEXTS)
def test_a_perfect_reader_of_strips_loses_no_line(frame: str, text: str) -> None:
    rng = random.Random(f"{frame}{text}")
    page, lines = draw_page(frame, [TEXTS[text](rng, i) for i in range(14)])
    counts = read_page(page, lines, DEMO_ANYRES)
    assert (counts.lost, counts.strips > 1) == (0, True)
    assert frame == "textured" or counts.doubled == 0


def columns_of(count: int, lefts: tuple[int, ...], words: int) -> Image.Image:
    """A line across the page, columns of lines of boxes beneath it, shifted against each other, and one line more."""
    page = Image.new("L", (1240, 1500), 255)
    draw = ImageDraw.Draw(page)
    for top in (50, 1400):
        draw.rectangle((60, top, 1180, top + 1), fill=0)
        for x in range(60, 1180, 16):
            draw.rectangle((x, top, x + 9, top + LINE), fill=0)
    for column, left in enumerate(lefts):
        for line in range(count):
            for word in range(words - line % 3):
                x, y = left + 16 * word, 120 + 11 * column + LEADING * line
                draw.rectangle((x, y, x + 9, y + LINE - 1), fill=0)
    return page


def test_columns_of_print_are_read_one_after_the_other() -> None:
    spans = cut_page(columns_of(30, (60, 660), 33), ANYRES)
    assert [(span.left, span.right > 0) for span in spans] == [(0, False), (0, True), (0, True)] + [
        (spans[3].left, True)
    ] * 2 + [(0, False)]
    assert 588 < spans[3].left == spans[1].right < 660
    assert spans[0].bottom <= spans[1].top <= 120
    assert max(span.bottom for span in spans[1:5]) <= 1400 <= spans[5].bottom


def lists(lines: int, pitch: int = 400, second: int = 0) -> Image.Image:
    """Lines of very different lengths in two columns below a heading, `second` lines fewer in the second one."""
    page = Image.new("RGB", (2 * pitch, 86 + 46 * lines), "white")
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(size=28)
    pen.text((16, 10), "A heading across both of them", fill="black", font=font)
    for column, count in enumerate((lines, lines - second)):
        for number in range(count):
            text = ("Lemon cake 3.50", "Bridge", "Harbour 12 and a pier", "Tea")[number % 4]
            pen.text((16 + pitch * column, 66 + 46 * number), text, fill="black", font=font)
    return page


@pytest.mark.parametrize("second", [0, 4])
@pytest.mark.parametrize("pitch", [330, 400, 500])
def test_two_lists_are_read_one_after_the_other(pitch: int, second: int) -> None:
    spans = cut_page(lists(16, pitch, second), DEMO_ANYRES)
    assert [span.left > 0 for span in spans] == sorted(span.left > 0 for span in spans)
    assert {span.left for span in spans[1:]} == {0, spans[-1].left}
    assert 300 < spans[-1].left < pitch + 16


def test_dust_in_the_white_between_columns_does_not_part_it() -> None:
    page = lists(16)
    for row in range(80, 780, 9):
        page.putpixel((380 + row % 13, row), (0, 0, 0))
    assert [span.left > 0 for span in cut_page(page, DEMO_ANYRES)][-1]


@pytest.mark.parametrize(
    ("lefts", "words"),
    [
        pytest.param((60,), 60, id="one column"),
        pytest.param((60, 500, 940), 17, id="a table of wide cells"),
        pytest.param((60, 360, 660, 960), 5, id="the cells of a table"),
        pytest.param((60, 1100), 5, id="labels and amounts"),
    ],
)
def test_what_stands_side_by_side_in_a_table_is_read_across(lefts: tuple[int, ...], words: int) -> None:
    assert all(span.right == 0 for span in cut_page(columns_of(30, lefts, words), ANYRES))
