"""The end of a run: what was made, what failed and why, what was cut, and the lines that mend these."""

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pytest

from jobs.answer import report
from pipeline.plan import Summary
from pipeline.reports.outcome import describe_outcome
from pipeline.run_folder.merge import in_manifest, write_answers
from pipeline.run_folder.run import begin_run, write_manifest
from pipeline.run_folder.units import count_answers, to_parquet
from schemas.answer import ANSWER_SCHEMA


def rows(*ends: str) -> pa.Table:
    """Answers that ended so: a finish reason, or `stage/Type message`."""
    found = []
    for i, end in enumerate(ends):
        row = dict.fromkeys(ANSWER_SCHEMA.names) | {"id": f"row {i}", "prompt_id": "p", "prompt": "Q?", "attempt": 1}
        if "/" in end:
            stage, _, rest = end.partition("/")
            kind, _, message = rest.partition(" ")
            row |= {"status": "error", "error_stage": stage, "error_type": kind, "error_message": message}
        else:
            row |= {"status": "ok", "text": "t", "finish_reason": end, "num_generated_tokens": 64 + i}
        found.append(row)
    return pa.Table.from_pylist(found, schema=ANSWER_SCHEMA)


def complete(folder: Path, *ends: str, retries: Sequence[object] = ()) -> Summary:
    out, table = str(folder), rows(*ends)
    run = begin_run(out, {"identity": {}, "settings": {}})
    files = [write_answers(out, "answers/part-00000.parquet", to_parquet(table), table.num_rows)]
    counts = in_manifest(count_answers(table))
    named = {name: run[name] for name in ("format", "run", "fingerprint")}
    write_manifest(out, {**named, **counts, "files": files, "retries": [*retries], "timings": {"seconds": 3723.4}})
    return Summary(rows=counts["rows"], ok=counts["ok"], errors=counts["errors"], images_per_s=2.345, output=out)


def test_it_says_what_was_made_where_and_how_fast(tmp_path: Path) -> None:
    said = describe_outcome(complete(tmp_path, "stop", "stop"))
    assert said == f"done     2 of 2 answers in 1:02:03 (2.3 images/s once loaded): {tmp_path}/answers"


def test_after_a_retry_it_says_how_often_and_not_how_long_the_first_time_took(tmp_path: Path) -> None:
    said = describe_outcome(complete(tmp_path, "stop", retries=[{"history": ".run/attempts/retry-0001.pq", "rows": 1}]))
    assert said == f"done     1 of 1 answer after 1 further attempt (2.3 images/s once loaded): {tmp_path}/answers"


def test_it_counts_failures_by_stage_and_type_with_an_example_and_says_how_to_retry(tmp_path: Path) -> None:
    ends = ["stop", "fetch/NotFound no\nsuch \x1b[31mfile", "decode/Broken bad", "decode/Broken worse"]
    lines = describe_outcome(complete(tmp_path / "o ut", *ends)).splitlines()
    assert lines[1] == "failed   2 Broken at decode, as row 2: bad"
    assert lines[2] == r"failed   1 NotFound at fetch, as row 1: no such \x1b[31mfile"
    assert lines[3] == f"retry    llava-batch retry-failed '{tmp_path}/o ut'"


def test_it_counts_what_was_cut_and_says_how_to_get_more(tmp_path: Path) -> None:
    lines = describe_outcome(complete(tmp_path, "length", "length", "repetition", "stop")).splitlines()
    assert lines[1].startswith("cut      2 at their longest length: llava-batch retry-failed")
    assert lines[1].endswith(" --finish-reason length --max-new-tokens 130")  # twice what the longest had
    assert lines[2].startswith("cut      1 for repeating themselves")


@pytest.mark.parametrize(
    ("ends", "allowed", "status"),
    [
        (["decode/Broken x"], 0.01, 1),
        (["decode/Broken x"], 0.99, 1),
        (["decode/Broken x"], 1.0, 0),
        (["decode/Broken x", "stop"], 0.01, 0),
        (["stop"], 0.0, 0),
    ],
)
def test_a_run_in_which_every_row_failed_is_no_success(tmp_path: Path, ends, allowed, status, capsys) -> None:
    assert report(complete(tmp_path, *ends), allowed) == status
    shown = capsys.readouterr()
    assert ("error: all 1 answers failed" in shown.err) == (status == 1)
    assert shown.out.splitlines()[-1].startswith('{"rows": ')
