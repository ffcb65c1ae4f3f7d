"""From a cell of a sweep's table to its rows: right and wrong ones, with their pictures."""

import json
import re
from pathlib import Path

import pyarrow as pa
import pytest

from jobs.__main__ import main
from pipeline.run_folder.units import to_parquet
from pipeline.storage import filesystem as fs
from pipeline.sweep.judging import JUDGED_SCHEMA, judged_path
from pipeline.sweep.pages import write_pages
from pipeline.sweep.results import Result, results_to_table
from schemas.errors import Refused
from tests.exports.runs import make_images, make_run

CELL = Result(model="m", benchmark="quiz", prompt="plain & short", settings="x", status="complete", metric="right",
    score=0.5, low=0.0, high=1.0, rows=3, errors=0, cut_share=0.0, unparsable_share=0.0)  # fmt: skip
MISSING = Result(model="m", benchmark="quiz", prompt="other", settings="x", status="incomplete", reason="no time")
SCORES = {"a.jpg": 1.0, "b.jpg": 0.0, "c.jpg": 0.3}


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("sweep")
    out = folder / "sweep"
    make_run(folder, make_images(folder / "in", list(SCORES)), output=str(out / "cells" / str(CELL.name)))
    judged = [
        {"id": id, "prompt": "?", "references": ["a dog", f"<b>{id}"], "score": score} for id, score in SCORES.items()
    ]
    table = pa.Table.from_pylist(judged, schema=JUDGED_SCHEMA)
    fs.write_atomic(judged_path(str(out / "judged"), CELL.name), to_parquet(table))
    fs.write_atomic(str(out / "results.parquet"), to_parquet(results_to_table([CELL, MISSING])))
    return str(out)


def test_each_cell_has_a_page_that_the_table_links_to(sweep: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", sweep]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said == [f"{sweep}/results.html", f"{sweep}/pages/m/quiz/plain & short/x.html"]
    links = re.findall(r'<a href="(.*?)">', Path(sweep, "results.html").read_text())
    assert links == ["pages/m/quiz/plain%20%26%20short/x.html"] * 2


def test_a_page_shows_right_and_wrong_rows_with_what_was_wanted_and_their_pictures(sweep: str) -> None:
    (_, page) = write_pages(sweep)
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', Path(page).read_text())
    assert data is not None
    rows = json.loads(data[1])["rows"]
    assert [(row["id"], row["m"], row.get("v")) for row in rows] == [
        ("a.jpg", "right", None),
        ("b.jpg", "wrong", None),
        ("c.jpg", "partly right", 0.3),
    ]
    assert [row["a"] for row in rows] == [f"a dog | <b>{id}" for id in SCORES]
    assert [row["y"] for row in rows[1:]] == ["wrong", "wrong"]
    assert [row["g"] for row in rows] == [0, 1, 2]


@pytest.mark.parametrize(("flag", "value"), [("--to", "x.html"), ("--compare", "out"), ("--rows", "0")])
def test_what_is_for_a_run_is_refused_for_a_sweep(sweep: str, flag: str, value: str, capsys) -> None:
    assert main(["report", sweep, flag, value]) == 2
    assert flag in capsys.readouterr().err


def test_a_sweep_without_a_complete_cell_has_no_pages(tmp_path: Path) -> None:
    fs.write_atomic(str(tmp_path / "results.parquet"), to_parquet(results_to_table([MISSING])))
    with pytest.raises(Refused, match="complete cells"):
        write_pages(str(tmp_path))
