"""Report: a run as one page of HTML that needs nothing but itself: numbers, failures, and pictures with answers."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pipeline.exports.destination import check_destination, put_file
from pipeline.exports.images import Pictures
from pipeline.exports.rows import Run, open_run
from pipeline.reports.compare import Compared, Difference, compare
from pipeline.reports.facts import Mark, Marks, choose, read_facts
from pipeline.reports.page import make_page
from pipeline.reports.thumbnails import make_thumbnails
from pipeline.run_folder.layout import state_path
from pipeline.storage import filesystem as fs
from pipeline.storage.local_files import NotRegular
from schemas.errors import Refused
from schemas.wording import redacted

MOST_ROWS = 2_000
_TEXT_BYTES = 5 * 2**20  # of all texts that are shown
_LONGEST = 20_000  # bytes of one
_COLUMNS = ["id", "prompt_id", "prompt", "status", "text", "finish_reason", "mean_logprob", "num_prompt_tokens"]
_COLUMNS += ["num_generated_tokens", "image_width", "image_height", "error_stage", "error_type", "error_message"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """The pictures of a page, and which of them each input row has."""

    images: list[str]
    of_row: dict[int, int]
    reasons: dict[int, str]
    note: str | None = None  # why there are none at all


def write_report(
    folder: str, destination: str | None = None, compared: str | None = None, rows: int = MOST_ROWS
) -> str:
    """Write the page of a complete run, over one that is there; return where it is."""
    if not 1 <= rows <= MOST_ROWS:
        raise Refused(f"--rows must be from 1 to {MOST_ROWS}, got {rows}")
    run = open_run(folder)
    target = state_path(folder, "report.html") if destination is None else destination
    check_destination(target, "--to")
    if fs.exists(target) and not _is_page(target):
        raise Refused(f"--to must be a new file or a page that a report was, {target} is something else")
    other = None if compared is None else compare(run, open_run(compared, "--compare"), rows)
    put_file(target, report(run, rows, other).encode("utf-8", "replace"))
    return fs.absolute(target)


def report(run: Run, rows: int = MOST_ROWS, other: Compared | None = None, marks: Marks | None = None) -> str:
    """Return the page; `marks` are what a benchmark says of the answers."""
    facts = read_facts(run, rows, marks)
    try:
        pictures, note = Pictures(run), None
    except (Refused, OSError) as error:  # the input is gone or another one: the rest can be told all the same
        pictures, note = None, redacted(str(error))
    prompts = len(run.prompt_ids)
    unit_answers = pictures.unit_rows * prompts if pictures else 64
    chosen = dict.fromkeys(other.positions, "differs") if other else choose(run, facts, rows, unit_answers)
    shown = _show(pictures, sorted({position // prompts for position in chosen}), note)
    most = _TEXT_BYTES // max(1, len(chosen))
    told = []
    for position, answer, why in _answers(run, chosen):
        mark = _mark(marks[answer["id"]], most) if marks else {}
        told.append(_row(position, answer, why, shown, prompts, most) | mark)
    for row in told if other else ():
        row["diff"] = fitting_difference(other.differences[row["i"]], 2 * _TEXT_BYTES // len(told)) if other else None
    data = {"rows": told, "images": shown.images, "note": shown.note}
    return make_page(run, facts, _embedded(data), other)


def _show(pictures: Pictures | None, rows: list[int], note: str | None) -> Shown:
    shown = Shown(images=[], of_row={}, reasons={}, note=note)
    for thumbnail in make_thumbnails(pictures, rows) if pictures else ():
        if thumbnail.uri is None:
            shown.reasons[thumbnail.row] = thumbnail.reason or ""
        else:
            shown.of_row[thumbnail.row] = len(shown.images)
            shown.images.append(thumbnail.uri)
    return shown


def _answers(run: Run, chosen: dict[int, str]) -> Iterator[tuple[int, dict[str, Any], str]]:
    """Yield the chosen answers, each with its position and why it is shown."""
    wanted = iter(sorted(chosen))
    position, start = next(wanted, -1), 0
    for table in run.batches(columns=_COLUMNS):
        positions = []
        while 0 <= position < start + table.num_rows:
            positions.append(position)
            position = next(wanted, -1)
        picked = table.take([position - start for position in positions]).to_pylist() if positions else []
        yield from ((position, row, chosen[position]) for position, row in zip(positions, picked, strict=True))
        start += table.num_rows


def _row(position: int, answer: dict[str, Any], why: str, shown: Shown, prompts: int, most: int) -> dict[str, Any]:
    """Return what the page is told of one answer; keys are short, as there are thousands."""
    row = position // prompts
    text = answer["text"] if answer["status"] == "ok" else answer["error_message"]
    fitting = _fitting(text or "", most // 2)
    told = {
        "i": position,
        "id": _fitting(str(answer["id"]), 500),
        "p": answer["prompt_id"],
        "q": _fitting(answer["prompt"], min(1_000, most // 4)),
        "t": fitting,
        "f": answer["finish_reason"],
        "c": answer["mean_logprob"],
        "n": answer["num_generated_tokens"],
        "k": answer["num_prompt_tokens"],
        "w": answer["image_width"],
        "h": answer["image_height"],
        "e": None if answer["status"] == "ok" else f"{answer['error_type']} at {answer['error_stage']}",
        "y": why,
        "g": shown.of_row.get(row),
        "r": shown.reasons.get(row),
        "z": len(text or "") if fitting != text else None,
    }
    return {name: value for name, value in told.items() if value is not None}


def _mark(mark: Mark, most: int) -> dict[str, Any]:
    """Return what the page is told of a benchmark's mark."""
    told = {"m": mark.name, "a": _fitting(" | ".join(mark.references), min(1_000, most // 4))}
    return told if mark.score in (0, 1) else {**told, "v": mark.score}


def _fitting(text: str, most: int) -> str:
    """Return the beginning of a text that has at most so many bytes on the page."""
    most = min(_LONGEST, most)
    while (size := len(_embedded(text).encode())) > most and text:
        text = text[: min(len(text) - 1, len(text) * most // size)]
    return text


def fitting_difference(difference: Difference, most: int) -> Difference:
    """Return the beginning of a difference that has at most about so many bytes on the page."""
    kept: Difference = []
    for mark, words in difference:
        if most <= 0:
            return [*kept, ("=", " ...")]
        kept.append((mark, _fitting(words, most)))
        most -= len(_embedded(words).encode())
    return kept


_HIDDEN = {ord(letter): f"\\u{ord(letter):04x}" for letter in "<>&\u2028\u2029"}


def _embedded(value: object) -> str:
    """Return a value as JSON that may stand in HTML: nothing in it ends a script or begins a tag."""
    return json.dumps(_finite(value), ensure_ascii=False, separators=(",", ":")).translate(_HIDDEN)


def _finite(value: object) -> object:
    match value:
        case float():
            return round(value, 4) if abs(value) < 1e308 else None
        case dict():
            return {name: _finite(one) for name, one in value.items()}
        case list() | tuple():
            return [_finite(one) for one in value]
        case _:
            return value


def _is_page(url: str) -> bool:
    try:
        return b"llava-batch report" in fs.read_bytes(url, 400)
    except (FileNotFoundError, IsADirectoryError, NotRegular):  # a folder, here or in a store
        return False
