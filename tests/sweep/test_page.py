"""The table as people see it, and as it is stored."""

import re
from html.parser import HTMLParser

import pytest

from pipeline.sweep.page import axis_of, to_html, to_markdown
from pipeline.sweep.results import RESULT_SCHEMA, Result, results_to_table, table_to_results

BASE = Result(
    model="m<1>",
    benchmark="quiz",
    prompt="plain",
    settings="float32",
    status="complete",
    metric="right",
    score=0.5,
    low=0.25,
    high=0.75,
    rows=1200,
    errors=3,
    cut_share=0.125,
    unparsable_share=0.0,
    images_per_s=14.125,
)
OTHER = Result(
    model="m<1>",
    benchmark="quiz",
    prompt="po|lite",
    settings="float32",
    status="complete",
    metric="right",
    score=0.75,
    low=0.5,
    high=1.0,
    baseline="m<1>/quiz/plain/float32",
    difference=0.25,
    difference_low=0.125,
    difference_high=0.375,
    rows=1200,
    errors=0,
    cut_share=0.0,
    unparsable_share=0.0,
)
SPLIT = Result(model="m<1>", benchmark="quiz", prompt="plain", settings="float32", status="complete",
    metric="right hard", headline=False, score=0.25, low=0.0, high=0.5)  # fmt: skip
MISSING = Result(
    model="m<1>", benchmark="quiz", prompt="x", settings="y", status="incomplete", reason="out of <memory>\nand more"
)
RESULTS = [BASE, SPLIT, OTHER, MISSING]


def test_results_come_back_from_their_table() -> None:
    table = results_to_table(RESULTS)
    assert table.schema.equals(RESULT_SCHEMA)
    assert table_to_results(table) == RESULTS


def test_the_markdown_has_scores_intervals_and_what_is_incomplete() -> None:
    text = to_markdown(RESULTS)
    assert "3 of 4 cells" not in text
    assert "2 of 3 cells complete. Baseline: m<1>/quiz/plain/float32." in text
    assert "| 0.500 [0.250, 0.750] |  | 1,200 | 3 | 12.5% | 0.0% | 14.12 |" in text
    assert r"| po\|lite | float32 | 0.750 [0.500, 1.000] | **+0.250 [+0.125, +0.375]** |" in text
    assert "| quiz | right hard | m<1> | plain | float32 | 0.250 [0.000, 0.500] |" in text
    assert "- m<1>/quiz/x/y: out of <memory>\n" in text
    assert "and more" not in text


def test_a_difference_that_may_be_none_is_not_bold() -> None:
    assert "**" not in to_markdown([Result(**{**_fields(OTHER), "difference_low": -0.125})]).split("Sweep", 1)[1][400:]


def test_the_page_is_well_formed_loads_nothing_and_escapes_what_it_shows() -> None:
    page = to_html(RESULTS)
    parser = _Balanced()
    parser.feed(page)
    assert parser.open == []
    assert "m&lt;1&gt;" in page
    assert "m<1>" not in page
    assert not re.search(r"(src|href|@import|url\()", page)
    assert page.count('<tr class="headline">') == 2
    assert page.count('<tr class="other">') == 1
    assert "out of &lt;memory&gt;" in page


def test_a_sweep_of_which_nothing_is_complete_has_a_table_all_the_same() -> None:
    assert "0 of 1 cells complete." in to_markdown([MISSING])
    assert "0 of 1 cells complete." in to_html([MISSING])


@pytest.mark.parametrize(
    ("values", "axis"),
    [
        pytest.param([0.25, 1.0], (0.0, 1.0), id="shares"),
        pytest.param([0.0, 0.0], (0.0, 1.0), id="nothing right"),
        pytest.param([640.0, 1000.0], (0.0, 1000.0), id="of a thousand"),
        pytest.param([0.2, 0.33], (0.0, 0.5), id="small"),
        pytest.param([-0.3, 1.2], (-0.5, 2.0), id="below 0"),
        pytest.param([-3.0, -1.0], (-5.0, 0.0), id="all below 0"),
        pytest.param([], (0.0, 1.0), id="none"),
    ],
)
def test_an_axis_has_round_ends_around_all_its_scores(values: list[float], axis: tuple[float, float]) -> None:
    assert axis_of(values) == axis


def test_a_dot_at_either_end_of_the_scale_stands_at_its_tick_and_the_ends_are_labelled() -> None:
    ends = [Result(**{**_fields(BASE), "score": at, "low": at, "high": at}) for at in (0.0, 1.0)]
    drawings = re.findall(r"<svg.*?</svg>", to_html(ends))
    dots = [re.search(r'circle cx="([\d.]+)"', drawing)[1] for drawing in drawings]
    for drawing in drawings:
        assert [f'd="M{dot} 5v6"' in drawing for dot in dots] == [True, True]
        assert re.findall(r">([\d.]+)</text>", drawing) == ["0", "1"]


def test_on_a_phone_a_row_is_a_card_that_names_its_values() -> None:
    page = to_html(RESULTS)
    assert "@media (max-width: 48rem)" in page
    assert '<td class="number score" data-key="0.5" data-title="score">0.500 [0.250,&nbsp;0.750]</td>' in page


def _fields(result: Result) -> dict[str, object]:
    return {name: getattr(result, name) for name in RESULT_SCHEMA.names}


class _Balanced(HTMLParser):
    """Which elements are open in the end; raises where one closes that was not open."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag, attrs) -> None:
        if tag not in ("meta", "input"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs) -> None:
        pass

    def handle_endtag(self, tag) -> None:
        assert self.open.pop() == tag
