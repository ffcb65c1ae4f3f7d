"""Pages: the rows of each complete cell of a sweep as a page, right and wrong ones, with their pictures."""

from collections.abc import Iterator, Sequence

import pyarrow.parquet as pq

from pipeline.exports.destination import put_file
from pipeline.exports.rows import open_run
from pipeline.reports.facts import Mark
from pipeline.reports.report import MOST_ROWS, report
from pipeline.storage import filesystem as fs
from pipeline.sweep.judging import judged_path
from pipeline.sweep.page import page_of, to_html
from pipeline.sweep.results import Result, table_to_results
from schemas.errors import Refused
from schemas.sweep import CellName


def is_sweep(folder: str) -> bool:
    """Return whether a folder has the table of a sweep."""
    return fs.exists(_table(folder))


def write_pages(folder: str, rows: int = MOST_ROWS) -> list[str]:
    """Write the page of each complete cell, and the table anew with links to them; return where they are.

    The table's own page is the first. Raises Refused where there is no table of a sweep, or no complete cell.
    """
    if not 1 <= rows <= MOST_ROWS:
        raise Refused(f"--rows must be from 1 to {MOST_ROWS}, got {rows}")
    with fs.open_url(_table(folder)) as file:
        results = table_to_results(pq.read_table(file))
    complete = list(dict.fromkeys(result.name for result in results if result.status == "complete"))
    if not complete:
        raise Refused(f"OUT must be a sweep with complete cells, {folder} has none yet")
    pages = [_write_page(folder, name, rows) for name in complete]
    table = fs.join(folder, "results.html")
    put_file(table, to_html(results, pages_of(folder, results)).encode())
    return [fs.absolute(table), *pages]


def pages_of(folder: str, results: Sequence[Result]) -> dict[CellName, str]:
    """Return the pages that there are, below the sweep's folder, by cell."""
    names = dict.fromkeys(result.name for result in results if result.status == "complete")
    return {name: page_of(name) for name in names if fs.exists(fs.join(folder, page_of(name)))}


def _write_page(folder: str, name: CellName, rows: int) -> str:
    run = open_run(fs.join(folder, "cells", str(name)))
    path = fs.join(folder, page_of(name))
    page = report(run, rows, marks=dict(_marks(fs.join(folder, "judged"), name)))
    put_file(path, page.encode("utf-8", "replace"))
    return fs.absolute(path)


def _marks(folder: str, name: CellName) -> Iterator[tuple[str, Mark]]:
    with fs.open_url(judged_path(folder, name)) as file:
        judged = pq.read_table(file, columns=["id", "score", "references"])
    for row in judged.to_pylist():
        yield row["id"], Mark(score=row["score"], references=tuple(row["references"]))


def _table(folder: str) -> str:
    return fs.join(folder, "results.parquet")
