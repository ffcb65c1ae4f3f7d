"""The table of a sweep for people: Markdown, and one page that needs nothing but itself."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from urllib.parse import quote

from pipeline.sweep.results import Result
from schemas.sweep import CellName

_ABOUT = (
    "Brackets: 95 % bootstrap interval over questions. Difference: to the baseline, question by question; bold where "
    "its interval leaves out 0. Errors count as wrong. Cut: answers that ended at their longest length; unparsable: "
    "answers in which no answer was found; both are shares of the rows."
)


_LARGE = 20  # a score of a thousand has no use for thousandths


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A column of the table: its text, and what it is sorted by."""

    title: str
    text: Callable[[Result], str]
    key: Callable[[Result], str | float | None]


def to_markdown(results: Sequence[Result]) -> str:
    """Return the headline metrics, then the others, then the cells that are not complete."""
    parts = ["# Sweep", _summary(results), _ABOUT, _markdown_table(COLUMNS, _complete(results, headline=True))]
    if others := _complete(results, headline=False):
        parts += ["## Other metrics", _markdown_table(COLUMNS[:_SCORES], others)]
    if missing := [result for result in results if result.status != "complete"]:
        parts += ["## Incomplete", "\n".join(f"- {one.name}: {_first_line(one)}" for one in missing)]
    return "\n\n".join(parts) + "\n"


def page_of(name: CellName) -> str:
    """Return where the page with a cell's rows is, below the sweep's folder."""
    return f"pages/{name}.html"


def to_html(results: Sequence[Result], pages: Mapping[CellName, str] | None = None) -> str:
    """Return the page: sorted by a click on a column, narrowed by words; with links to the cells that have `pages`."""
    missing = [result for result in results if result.status != "complete"]
    rows = "\n".join(
        _html_row(result, results, (pages or {}).get(result.name)) for result in results if result.status == "complete"
    )
    heads = "".join(f"<th{_kind(column)}>{escape(column.title)}</th>" for column in COLUMNS)
    lines = "".join(f"<li><b>{escape(str(one.name))}</b> {escape(_first_line(one))}</li>" for one in missing)
    return _PAGE.format(
        style=_STYLE,
        script=_SCRIPT,
        summary=escape(_summary(results)),
        about=escape(_ABOUT),
        heads=f"<th>interval</th>{heads}",
        rows=rows,
        missing=f"<h2>Incomplete</h2><ul>{lines}</ul>" if lines else "",
    )


def _score(result: Result) -> str:
    return _with_interval(result.score, result.low, result.high, "")


def _difference(result: Result) -> str:
    text = _with_interval(result.difference, result.difference_low, result.difference_high, "+")
    return f"**{text}**" if text and _is_clear(result) else text


def _with_interval(value: float | None, low: float | None, high: float | None, sign: str) -> str:
    if value is None or low is None or high is None:
        return ""
    digits = 3 if max(map(abs, (value, low, high))) < _LARGE else 1
    return f"{value:{sign}.{digits}f} [{low:{sign}.{digits}f}, {high:{sign}.{digits}f}]"


def _is_clear(result: Result) -> bool:
    low, high = result.difference_low, result.difference_high
    return low is not None and high is not None and (low > 0 or high < 0)


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def _count(value: int | None) -> str:
    return "" if value is None else f"{value:,}"


COLUMNS = (
    Column(title="benchmark", text=lambda one: one.benchmark, key=lambda one: one.benchmark),
    Column(title="metric", text=lambda one: one.metric or "", key=lambda one: one.metric),
    Column(title="model", text=lambda one: one.model, key=lambda one: one.model),
    Column(title="prompt", text=lambda one: one.prompt, key=lambda one: one.prompt),
    Column(title="settings", text=lambda one: one.settings, key=lambda one: one.settings),
    Column(title="score", text=_score, key=lambda one: one.score),
    Column(title="difference", text=_difference, key=lambda one: one.difference),
    Column(title="rows", text=lambda one: _count(one.rows), key=lambda one: one.rows),
    Column(title="errors", text=lambda one: _count(one.errors), key=lambda one: one.errors),
    Column(title="cut", text=lambda one: _share(one.cut_share), key=lambda one: one.cut_share),
    Column(title="unparsable", text=lambda one: _share(one.unparsable_share), key=lambda one: one.unparsable_share),
    Column(
        title="images/s",
        text=lambda one: "" if one.images_per_s is None else f"{one.images_per_s:.2f}",
        key=lambda one: one.images_per_s,
    ),
)
_WITH_INTERVAL = ("score", "difference")
_WORDS = ("benchmark", "metric", "model", "prompt", "settings")  # columns of text
_SCORES = 7  # columns that differ between the metrics of a cell, and those before


def _complete(results: Sequence[Result], *, headline: bool) -> list[Result]:
    return [one for one in results if one.status == "complete" and one.headline == headline]


def _summary(results: Sequence[Result]) -> str:
    cells = [one for one in results if one.headline]
    done = sum(one.status == "complete" for one in cells)
    baselines = sorted({one.baseline for one in results if one.baseline})
    compared = f" Baseline: {', '.join(baselines)}." if baselines else ""
    return f"{done} of {len(cells)} cells complete.{compared}"


def _first_line(result: Result) -> str:
    return (result.reason or "").split("\n")[0]


def _markdown_table(columns: Sequence[Column], results: Iterable[Result]) -> str:
    def line(cells: Iterable[str]) -> str:
        return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"

    heads = [line(column.title for column in columns), f"|{'---|' * len(columns)}"]
    return "\n".join([*heads, *(line(column.text(one) for column in columns) for one in results)])


def _html_row(result: Result, results: Sequence[Result], page: str | None) -> str:
    cells = "".join(_html_cell(column, result, page) for column in COLUMNS)
    kind = "headline" if result.headline else "other"
    return f'<tr class="{kind}"><td class="drawing">{_drawing(result, results)}</td>{cells}</tr>'


def _html_cell(column: Column, result: Result, page: str | None) -> str:
    key, text = column.key(result), escape(column.text(result))
    if column.title in _WITH_INTERVAL:
        text = text.replace(", ", ",&nbsp;")  # a narrow column breaks before the interval, never in it
    bold = text.startswith("**")
    text = f"<b>{text.strip('*')}</b>" if bold else text
    key = "" if key is None else escape(str(key))
    if page is not None and column.title in ("score", "rows"):
        text = f'<a href="{escape(quote(page))}">{text}</a>'
    return f'<td{_kind(column)} data-key="{key}" data-title="{escape(column.title)}">{text}</td>'


def _kind(column: Column) -> str:
    if column.title in _WITH_INTERVAL:
        return f' class="number {column.title}"'
    return ' class="number"' if column.title not in _WORDS else ' class="word"'


def _drawing(result: Result, results: Sequence[Result]) -> str:
    """Return the score with its interval on the axis that all cells of this benchmark and metric share, its ends
    labelled."""
    same = [one for one in results if (one.benchmark, one.metric) == (result.benchmark, result.metric)]
    bounds = [value for one in same for value in (one.low, one.score, one.high) if value is not None]
    least, most = axis_of(bounds)

    def x(value: float) -> float:
        return round(_MARGIN + (_WIDTH - 2 * _MARGIN) * (value - least) / (most - least), 1)

    marks = "".join(f'<path d="M{x(end)} 5v6"/>' for end in (least, most))
    if result.low is not None and result.high is not None:
        marks += f'<line x1="{x(result.low)}" x2="{x(result.high)}" y1="8" y2="8"/>'
    if result.score is not None:
        marks += f'<circle cx="{x(result.score)}" cy="8" r="4"/>'
    ends = f'<text x="1" y="22">{least:g}</text><text x="{_WIDTH - 1}" y="22" text-anchor="end">{most:g}</text>'
    axis = f'<path d="M{x(least)} 8H{x(most)}"/>'
    return f'<svg width="{_WIDTH}" height="24" role="img"><title>{least:g} to {most:g}</title>{axis}{marks}{ends}</svg>'


_WIDTH, _MARGIN = 140, 6  # of a drawing, pixels; a dot at either end is whole


def axis_of(values: Sequence[float]) -> tuple[float, float]:
    """Return round ends around these values: 0 and the next of 1, 2, 5, 10, ... on the sides that they are on."""
    least, most = min(values, default=0.0), max(values, default=0.0)
    return (-_round_up(-least) if least < 0 else 0.0), (_round_up(most) if most > 0 or least >= 0 else 0.0)


def _round_up(value: float) -> float:
    """Return the least of 1, 2 or 5 times a power of ten that is no less; 1 for 0."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(float(f"{step * power:.3g}") for step in (1, 2, 5, 10) if value <= step * power * (1 + 1e-9))


_STYLE = """
:root { color-scheme: light dark; --line: #8884; --mark: #2563eb; }
body { font: 14px/1.45 system-ui, sans-serif; margin: 2rem auto; padding: 0 1rem; max-width: 110rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; margin-top: 1rem; white-space: nowrap; }
th, td { padding: .3rem .6rem; border-bottom: 1px solid var(--line); text-align: left; }
th { cursor: pointer; user-select: none; position: sticky; top: 0; background: Canvas; }
th[aria-sort=ascending]::after { content: " \\25B4"; }
th[aria-sort=descending]::after { content: " \\25BE"; }
.number { text-align: right; font-variant-numeric: tabular-nums; }
tbody tr:hover { background: #8881; }
svg { vertical-align: middle; } svg line { stroke: var(--mark); stroke-width: 3; opacity: .5; }
svg circle { fill: var(--mark); } svg path { stroke: #888; } svg text { font-size: 10px; fill: #888; }
input[type=search] { padding: .3rem .5rem; width: 20rem; max-width: 100%; box-sizing: border-box; font: inherit; }
label { margin-left: 1rem; }
@media (min-width: 48.01rem) and (max-width: 112rem) {
  table { font-size: 13px; } th, td { padding: .3rem .35rem; }
  td.word { white-space: normal; overflow-wrap: break-word; } td.score, td.difference { white-space: normal; }
}
@media (max-width: 48rem) {
  body { margin: 1rem auto; } label { display: block; margin: .5rem 0; }
  thead { display: none; } table, tbody { display: block; white-space: normal; }
  tr:not([hidden]) { display: grid; grid-template-columns: 140px 1fr; gap: 0 1rem; align-items: center; }
  tr { border-bottom: 1px solid var(--line); padding: .6rem 0; }
  td { border: 0; padding: .1rem 0; } td.word, td.difference { grid-column: 1 / -1; } td:empty { display: none; }
  td[data-title]::before { content: attr(data-title) " "; color: #888; }
  td.drawing { order: -2; } td.score { order: -1; font-size: 1.1rem; font-weight: 600; text-align: left; }
  td.score::before { content: none !important; }
  td.number:not(.score) { text-align: left; }
}
"""
_SCRIPT = """
const body = document.querySelector("tbody"), heads = [...document.querySelectorAll("th")];
const words = document.querySelector("#words"), all = document.querySelector("#all");
function show() {
  const wanted = words.value.toLowerCase().split(/\\s+/);
  for (const row of body.rows) {
    const text = row.textContent.toLowerCase();
    row.hidden = (row.className === "other" && !all.checked) || !wanted.every(word => text.includes(word));
  }
}
function compare(a, b) {
  if (a === "" || b === "") return (a === "") - (b === "");
  return isNaN(a) || isNaN(b) ? a.localeCompare(b) : a - b;
}
heads.slice(1).forEach((head, column) => head.addEventListener("click", () => {
  const up = head.getAttribute("aria-sort") !== "ascending";
  heads.forEach(other => other.removeAttribute("aria-sort"));
  head.setAttribute("aria-sort", up ? "ascending" : "descending");
  const key = row => row.cells[column + 1].dataset.key;
  const rows = [...body.rows].sort((a, b) => compare(key(a), key(b)) * (up || key(a) === "" || key(b) === "" ? 1 : -1));
  body.append(...rows);
}));
words.addEventListener("input", show);
all.addEventListener("change", show);
show();
"""
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Sweep</title><style>{style}</style></head>
<body><h1>Sweep</h1><p>{summary}</p><p>{about}</p>
<input id="words" type="search" placeholder="show rows with these words" aria-label="filter">
<label><input id="all" type="checkbox"> all metrics</label>
<div class="scroll"><table><thead><tr>{heads}</tr></thead><tbody>
{rows}
</tbody></table></div>{missing}
<script>{script}</script></body></html>
"""
