"""A job over the web: rows as LAION has them, a tenth of whose URLs are dead, slow or hostile."""

from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.job import run_job
from pipeline.plan import plan_job
from schemas.job import JobSettings
from tests.fakes import load_echo_engine
from tests.tiny import checkpoint
from tests.web_server import Web, serving

# Path of a URL that gives no image -> what its row's error is called.
BAD = {
    "/404": "NotFound",
    "/html": "NotAnImage",
    "/to-metadata": "PrivateAddress",
    "/gzip-bomb": "TooLarge",
    "/says-nothing": "TimedOut",
    "/round": "TooManyRedirects",
    "/403": "Forbidden",
    "/410": "Gone",
    "/for-ever": "TooLarge",
    "/noai": "NoAI",
    "/to-a-file": "BadURL",
    "/429-for-long": "RateLimited",
    "/truncated": "Truncated",
    "/500": "ServerError",
    "/brotli": "BadEncoding",
    "/no-http": "BadResponse",
}


def write_rows(path: Path, web: Web, num_rows: int, bad: list[str]) -> dict[str, str]:
    """Write a table of URLs, every tenth a bad one; return the errors of the rows that get one."""
    urls, expected = [], {}
    for row in range(num_rows):
        name = bad[row // 10 % len(bad)] if row % 10 == 3 else "/ok"
        urls.append(web.url(f"{name}?row={row}&token=SECRET"))
        if name != "/ok":
            expected[str(row)] = BAD[name]
    keys = [str(row) for row in range(num_rows)]
    pq.write_table(pa.table({"key": keys, "url": urls, "caption": ["a red square"] * num_rows}), path)
    return expected


@pytest.mark.ray
@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize(
    ("num_rows", "num_bad"), [pytest.param(60, 6, id="60"), pytest.param(1000, 16, id="1000", marks=pytest.mark.soak)]
)
def test_every_row_of_the_web_has_an_answer_or_the_right_reason(tmp_path: Path, num_rows: int, num_bad: int) -> None:
    with serving() as web:
        expected = write_rows(tmp_path / "in.parquet", web, num_rows, list(BAD)[:num_bad])
        settings = JobSettings.model_validate(
            {
                "input": (str(tmp_path / "in.parquet"),),
                "output": str(tmp_path / "out"),
                "model": str(checkpoint()),
                "max_new_tokens": 4,
                "allow_private": True,
                "fetch_read_seconds": 5,
                "max_image_bytes": 1_000_000,
                "max_fetch_error_rate": 0.2,
                "preprocess_workers": 1,
            }
        )
        summary = run_job(plan_job("caption", settings, "Describe it."), load_echo_engine)
    answers = [row for file in sorted((tmp_path / "out/answers").iterdir()) for row in pq.read_table(file).to_pylist()]
    assert [answer["id"] for answer in answers] == [str(row) for row in range(num_rows)]
    assert {a["id"]: a["error_type"] for a in answers if a["status"] == "error"} == expected
    assert summary.errors == len(expected) == num_rows // 10
    assert Counter(a["error_stage"] for a in answers if a["status"] == "error") == {"fetch": num_rows // 10}
    assert not any("SECRET" in (answer["error_message"] or "") for answer in answers)
