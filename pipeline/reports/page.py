"""Page: the HTML of a report. Every text of a run is escaped here, or set as text by the page's own script."""

import shlex
from collections.abc import Iterable, Iterator
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.exports.card import command_of
from pipeline.exports.rows import Run
from pipeline.reports.charts import bars, histogram, shares
from pipeline.reports.compare import Compared
from pipeline.reports.facts import Facts
from schemas.wording import printable, redacted

_TEMPLATE = Path(__file__).with_name("page.html")
_POINTS = 60  # bars of a run's pace


def make_page(run: Run, facts: Facts, data: str, other: Compared | None = None) -> str:
    """Return the page; `data` is JSON that may stand in HTML."""
    parts = {
        "TITLE": escape(f"{run.folder} against {other.other.folder}" if other else run.folder),
        "KIND": "Comparison" if other else escape(str(run.description["identity"].get("job", "run"))),
        "TILES": "".join(_tiles(run, facts, other)),
        "CHARTS": "".join(_charts(run, facts)),
        "ERRORS": _errors(run, facts),
        "ABOUT": _about(run),
        "DATA": data,
    }
    page = _TEMPLATE.read_text(encoding="utf-8")
    before, *rest = page.split("%%")  # names and what is between them alternate, so that no text is taken for a name
    return before + "".join(parts[part] if i % 2 == 0 else part for i, part in enumerate(rest))


def _tiles(run: Run, facts: Facts, other: Compared | None) -> Iterator[str]:
    manifest, timings = run.manifest, run.manifest.get("timings", {})
    seconds = timings.get("seconds", 0)
    ok, rows = manifest["ok"], manifest["rows"]
    if other:
        yield _tile("answers differ", f"{other.differ:,}", f"of {other.rows:,} compared")
    yield _tile("answers", f"{ok:,}", f"of {rows:,}")
    yield _tile("failed", f"{manifest['errors']:,}", _share(manifest["errors"], rows))
    yield _tile(
        "cut",
        f"{facts.ends['length']:,}",
        "at their longest length" + (f", {_share(facts.ends['length'], ok)}" if ok else ""),
    )
    if facts.ends["repetition"]:
        yield _tile("repeating", f"{facts.ends['repetition']:,}", _share(facts.ends["repetition"], ok))
    if seconds:
        images = rows / max(1, len(run.prompt_ids)) / seconds
        yield _tile("took", _time(seconds), f"{_pace_of(images)} images/s, loading and all")
    drawn = timings.get("engine", {}).get("num_answer_tokens", 0)
    if drawn and seconds:
        yield _tile("tokens", f"{drawn:,.0f}", f"{_pace_of(drawn / seconds)} generated a second")


def _tile(name: str, value: str, note: str) -> str:
    return f"<div><dt>{escape(name)}</dt><dd>{escape(value)}<small>{escape(note)}</small></dd></div>"


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.2%}" if whole else "none"


def _pace_of(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"


def _time(seconds: float) -> str:
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}" if whole >= 60 else f"{seconds:.1f} s"


def _charts(run: Run, facts: Facts) -> Iterator[str]:
    pace = run.manifest.get("timings", {}).get("pace") or []
    if len(pace) > 1:
        yield pace_chart(pace)
    yield histogram("Length of the answers", facts.drawn_tokens, "tokens")
    yield histogram("Length of prompts with images", facts.prompt_tokens, "tokens")
    yield shares("Confidence: mean probability of a token", facts.confidence)
    ends = [*facts.ends.items(), *([("failed", sum(facts.errors.values()))] if facts.errors else [])]
    yield _ends(ends)


def pace_chart(pace: list[list[float]]) -> str:
    """Return bars of answers a second over the time of a run, of points [seconds, answers done].

    The answers of a unit come all at once, and were worked on since the unit before: they are shared out over that
    time, and there are no more bars than units. What was done before the first unit was through is nobody's pace.
    """
    times, done = np.array(pace, float).T
    edges = np.linspace(0, times[-1], min(_POINTS, len(pace) - 1) + 1)
    width = edges[1]
    rates = np.diff(np.interp(edges, times, done)) / width if width else np.zeros(len(edges) - 1)
    names = [f"{_time(start)} to {_time(start + width)}, answers a second" for start in edges[:-1]]
    return bars("Answers a second over time", rates.tolist(), names, ("0 s", _time(times[-1])))


def _ends(ends: Iterable[tuple[str, int]]) -> str:
    found = list(ends)
    most = max((rows for _, rows in found), default=1)
    lines = "".join(
        f'<tr><th>{escape(name)}</th><td><div class="meter"><i style="width:{rows / most:.1%}"></i></div></td>'
        f"<td>{rows:,}</td></tr>"
        for name, rows in found
    )
    return (
        f'<figure class="chart"><figcaption>How answers ended</figcaption><table class="ends">{lines}</table></figure>'
    )


def _errors(run: Run, facts: Facts) -> str:
    if not facts.errors:
        return ""
    rows = "".join(_error(run, stage, type, facts) for (stage, type), _ in facts.errors.most_common())
    return (
        '<section><h2>Failed rows</h2><div class="scroll"><table class="errors"><thead><tr><th>error</th><th>rows</th>'
        f"<th>examples and what retries them</th></tr></thead><tbody>{rows}</tbody></table></div></section>"
    )


def _error(run: Run, stage: str, type: str, facts: Facts) -> str:
    told = (printable(redacted(example))[:400] for example in facts.examples[stage, type])
    examples = "".join(f"<li>{escape(example)}</li>" for example in told)
    again = shlex.join(["llava-batch", "retry-failed", run.folder, "--stage", stage, "--type", type])
    kind = f"{escape(type)} <small>at {escape(stage)}</small>"
    return (
        f"<tr><td>{kind}</td><td class=number>{facts.errors[stage, type]:,}</td>"
        f"<td><ul>{examples}</ul><code>{escape(again)}</code></td></tr>"
    )


def _about(run: Run) -> str:
    settings, settled = run.settings, run.description.get("settled", {})
    versions = run.description.get("versions", {})
    told: dict[str, object] = {
        "folder": run.folder,
        "begun": run.begun.isoformat(),
        "model": settings.get("model"),
        "revision": settings.get("revision"),
        "precision": settled.get("precision"),
        "input": ", ".join(map(str, settings.get("input", ()))),
        "retries": len(run.manifest.get("retries", ())) or None,
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
        **{f"prompt {number}": text for number, text in enumerate(settings.get("prompt", ()), start=1)},
    }
    rest = {name: value for name, value in settings.items() if name not in ("model", "revision", "input", "prompt")}
    return (
        f"<section><h2>What was run</h2>{_definitions(told)}<pre>{escape(command_of(run))}</pre>"
        f"<details><summary>All settings</summary>{_definitions(rest)}</details></section>"
    )


def _definitions(told: dict[str, Any]) -> str:
    rows = "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(redacted(str(value)))}</dd>"
        for name, value in told.items()
        if value not in (None, "", [], ())
    )
    return f'<dl class="facts">{rows}</dl>'
