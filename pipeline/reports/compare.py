"""Compare: two runs over the same rows, the answers that differ, and in which words."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from typing import Any

from pipeline.exports.rows import Run
from schemas.errors import Refused
from schemas.wording import printable

_MOST_WORDS = 600  # of a text that is compared word by word
_COLUMNS = ["id", "prompt_id", "status", "text", "error_type", "error_stage"]
Difference = list[tuple[str, str]]  # `=`, `-` or `+`, and the words


@dataclass(slots=True, kw_only=True)
class Compared:
    """The numbers of answers that differ between two runs, and those of them that are shown."""

    other: Run
    rows: int = 0
    differ: int = 0
    differences: dict[int, Difference] = field(default_factory=dict)  # by position

    @property
    def positions(self) -> list[int]:
        """Return the positions of the answers that are shown."""
        return list(self.differences)


def compare(run: Run, other: Run, most: int) -> Compared:
    """Return where two runs differ, at most so many answers at even distances; raises Refused for other rows."""
    if len(run.prompt_ids) != len(other.prompt_ids):
        raise Refused(
            f"--compare must be a run with as many prompts: {len(run.prompt_ids)} in {run.folder}, "
            f"{len(other.prompt_ids)} in {other.folder}"
        )
    compared = Compared(other=other)
    found: dict[int, tuple[str, str]] = {}
    step = 1
    for position, (left, right) in enumerate(_pairs(run, other)):
        compared.rows += 1
        one, two = _said(left), _said(right)
        if one == two:
            continue
        if compared.differ % step == 0:
            found[position] = (one, two)
        compared.differ += 1
        if len(found) > most:
            found, step = dict(list(found.items())[::2]), 2 * step
    compared.differences = {position: word_difference(*texts) for position, texts in found.items()}
    return compared


def word_difference(before: str, after: str) -> Difference:
    """Return what stays, goes and comes between two texts, in words."""
    one, two = (re.findall(r"\s+|\w+|[^\w\s]", text) for text in (before, after))
    if max(len(one), len(two)) > _MOST_WORDS:
        return [("-", before[:10_000]), ("+", after[:10_000])]
    found: Difference = []
    for kind, a, b, c, d in SequenceMatcher(None, one, two, autojunk=False).get_opcodes():
        if kind == "equal":
            found.append(("=", "".join(one[a:b])))
            continue
        found += [(mark, "".join(words)) for mark, words in (("-", one[a:b]), ("+", two[c:d])) if words]
    return found


def _pairs(run: Run, other: Run) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Yield the answers of both runs to the same rows; those that one has more of are left out."""
    sides = ((row for table in one.batches(columns=_COLUMNS) for row in table.to_pylist()) for one in (run, other))
    for left, right in zip(*sides, strict=False):
        if left["id"] != right["id"]:
            raise Refused(
                f"--compare must be a run over the same rows in the same order, {other.folder} has "
                f"{printable(str(right['id']))} where {run.folder} has {printable(str(left['id']))}"
            )
        yield left, right


def _said(row: dict[str, Any]) -> str:
    return row["text"] if row["status"] == "ok" else f"[failed: {row['error_type']} at {row['error_stage']}]"
