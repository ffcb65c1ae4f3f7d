"""Outcome: what a complete run came to, for the person who waited for it: answers, failures, cuts, and what to do."""

import shlex
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.plan import Summary
from pipeline.run_folder.run import read_manifest
from pipeline.storage import filesystem as fs
from schemas.wording import counted, printable, redacted

_COLUMNS = ["finish_reason", "num_generated_tokens", "error_stage", "error_type"]
_SHOWN = 160  # characters of an example


@dataclass(slots=True, kw_only=True)
class Outcome:
    """Answers by how they ended, failures by stage and type with the first of each.

    `longest` is the most tokens of an answer that was cut at its longest length.
    """

    ends: Counter[str] = field(default_factory=Counter)
    longest: int = 0
    failures: Counter[tuple[str, str]] = field(default_factory=Counter)
    examples: dict[tuple[str, str], str] = field(default_factory=dict)


def describe_outcome(summary: Summary) -> str:
    """Return what was made, where and how fast, what failed and why, what was cut, and the lines that mend these."""
    manifest, outcome = read_manifest(summary.output) or {}, read_outcome(summary.output)
    pace = f" ({summary.images_per_s:,.1f} images/s once loaded)" if summary.images_per_s else ""
    given = f"{summary.ok:,} of {counted(summary.rows, 'answer')}{_took(manifest)}{pace}"
    lines = [f"done     {given}: {fs.join(summary.output, 'answers')}"]
    for (stage, type), rows in outcome.failures.most_common():
        lines.append(f"failed   {rows:,} {type} at {stage}, as {outcome.examples[stage, type]}")
    lines += list(_describe_cuts(summary.output, outcome))
    if outcome.failures:
        lines.append(f"retry    llava-batch retry-failed {shlex.quote(summary.output)}")
    return "\n".join(lines)


def _took(manifest: dict[str, Any]) -> str:
    """Return how long the run took or, of answers that were tried again, how often that was."""
    if retries := len(manifest.get("retries", ())):
        return f" after {counted(retries, 'further attempt')}"
    seconds = round(manifest.get("timings", {}).get("seconds", 0))
    return f" in {seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"


def _describe_cuts(folder: str, outcome: Outcome) -> Iterator[str]:
    again = f"llava-batch retry-failed {shlex.quote(folder)} --finish-reason"
    if rows := outcome.ends["length"]:
        yield f"cut      {rows:,} at their longest length: {again} length --max-new-tokens {2 * outcome.longest}"
    if rows := outcome.ends["repetition"]:
        yield f"cut      {rows:,} for repeating themselves: {again} repetition --repetition-penalty 1.2"


def read_outcome(folder: str) -> Outcome:
    """Count the answers of a complete run; a row group at a time, and texts of nothing but the examples."""
    outcome = Outcome()
    for file in (read_manifest(folder) or {"files": []})["files"]:
        with fs.open_url(fs.join(folder, file["path"])) as source, pq.ParquetFile(source) as parquet:
            for group in range(parquet.num_row_groups):
                table = parquet.read_row_group(group, columns=_COLUMNS)
                new = _count(outcome, table)
                if new:
                    texts = parquet.read_row_group(group, columns=["id", "error_message"])
                    outcome.examples |= {key: _example(texts, row) for key, row in new.items()}
    return outcome


def _count(outcome: Outcome, table: pa.Table) -> dict[tuple[str, str], int]:
    """Add a table's rows; returns the first row of each sort of failure that was not there before."""
    ends = pc.value_counts(table.column("finish_reason").drop_null().combine_chunks()).to_pylist()
    outcome.ends.update({one["values"]: one["counts"] for one in ends})
    cut = table.filter(pc.equal(table.column("finish_reason"), "length")).column("num_generated_tokens")
    outcome.longest = max(outcome.longest, pc.max(cut).as_py() or 0)
    failed = pc.indices_nonzero(pc.is_valid(table.column("error_stage")))
    new: dict[tuple[str, str], int] = {}
    rows = table.select(["error_stage", "error_type"]).take(failed).to_pylist()
    for row, at in zip(rows, failed.to_pylist(), strict=True):
        key = (row["error_stage"], row["error_type"])
        if key not in outcome.examples:
            new.setdefault(key, at)
        outcome.failures[key] += 1
    return new


def _example(texts: pa.Table, row: int) -> str:
    """One line that a terminal can show."""
    one = texts.slice(row, 1).to_pylist()[0]
    text = printable(redacted(" ".join(f"{one['id']}: {one['error_message']}".split())))
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."
