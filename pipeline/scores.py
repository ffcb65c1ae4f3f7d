"""Scores: how the answers of a complete run compare with the texts that its input says are right.

.run/scores.pq      a row an answer, in their order: its edits, and what it would take to have none
.run/manifest.json  `scores`: the same for all answers together, and how they were compared
"""

import hashlib
import io
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.run_folder.answer_files import read_tables
from pipeline.run_folder.layout import below, state_table
from pipeline.run_folder.run import write_manifest
from pipeline.scoring.reading import Normalisation, Reading, add_up, nothing_read, read_against
from pipeline.sources.columns import REFERENCE
from pipeline.storage import filesystem as fs

NORMALISATION: Normalisation = "spaces"
_ROWS_AT_ONCE = 1000  # as Python's own objects
_COMPARED = ("id", "prompt_id", "status", "text", REFERENCE)

SCORES_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("prompt_id", pa.string(), nullable=False),
        pa.field("cer", pa.float64()),  # character edits a character of truth; null, as all below, without a truth
        pa.field("wer", pa.float64()),  # word edits a word of truth
        pa.field("character_edits", pa.int32()),
        pa.field("num_characters", pa.int32()),  # of the truth
        pa.field("word_edits", pa.int32()),
        pa.field("num_words", pa.int32()),  # of the truth
    ]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """The error rates of all rows with a truth together: all edits over all truth, a failed row having read nothing,
    which is an error even where there was nothing to read."""

    rows: int = 0
    errors: int = 0  # of these rows: not answered
    without_truth: int = 0  # rows that are not scored
    normalisation: Normalisation = NORMALISATION
    cer: float | None = None  # None where no row is scored
    wer: float | None = None


def score_run(folder: str, manifest: dict[str, Any]) -> dict[str, Any]:
    """Compare all answers with the truth that rides beside them; return the manifest that is there then."""
    buffer, tally = io.BytesIO(), _Tally()
    with pq.ParquetWriter(buffer, SCORES_SCHEMA, compression="zstd") as writer:
        for file in manifest["files"]:
            for answers in read_tables(fs.join(folder, file["path"]), _COMPARED, _ROWS_AT_ONCE):
                writer.write_table(tally.score(answers))
    path = state_table(folder, "scores")
    fs.write_atomic(path, buffer.getvalue())
    sha256 = hashlib.sha256(buffer.getvalue()).hexdigest()
    scores = {**tally.in_manifest(), "path": below(folder, path), "sha256": sha256}
    manifest = {**manifest, "scores": scores}
    write_manifest(folder, manifest)
    return manifest


def scores_in(manifest: dict[str, Any]) -> Scores | None:
    """Return what a manifest says, None where the run is not scored."""
    stated = manifest.get("scores")
    return stated and Scores(**{name: stated[name] for name in Scores.__slots__})


class _Tally:
    """Scores answers as they pass and adds them up."""

    def __init__(self) -> None:
        self._all = add_up([])
        self._scores = Scores()

    def score(self, answers: pa.Table) -> pa.Table:
        """Return the scores of some answers, a row each."""
        return pa.Table.from_pylist([self._score_row(row) for row in answers.to_pylist()], schema=SCORES_SCHEMA)

    def in_manifest(self) -> dict[str, Any]:
        """Return the sum of all."""
        scores = self._scores
        if scores.rows:
            scores = replace(scores, cer=round(self._all.cer, 6), wer=round(self._all.wer, 6))
        return {name: getattr(scores, name) for name in Scores.__slots__}

    def _score_row(self, row: dict[str, Any]) -> dict[str, Any]:
        named = {"id": row["id"], "prompt_id": row["prompt_id"]}
        if row[REFERENCE] is None:
            self._scores = replace(self._scores, without_truth=self._scores.without_truth + 1)
            return named
        reading = _read(row[REFERENCE], row["text"])
        self._all = add_up([self._all, reading])
        errors = self._scores.errors + (row["status"] == "error")
        self._scores = replace(self._scores, rows=self._scores.rows + 1, errors=errors)
        return {**named, **_numbers(reading)}


def _read(truth: str, text: str | None) -> Reading:
    return nothing_read(truth, NORMALISATION) if text is None else read_against(truth, text, NORMALISATION)


def _numbers(reading: Reading) -> dict[str, float]:
    return {
        "cer": reading.cer,
        "wer": reading.wer,
        "character_edits": reading.character_edits,
        "num_characters": reading.num_characters,
        "word_edits": reading.word_edits,
        "num_words": reading.num_words,
    }
