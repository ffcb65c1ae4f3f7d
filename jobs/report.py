"""report: a page that shows what a complete run was, how it went, and pictures with their answers.

python -m jobs report out/
python -m jobs report out/ --compare out-with-another-prompt/
"""

import sys
from typing import Annotated

from cyclopts import Parameter

from jobs.flags import Folder, under
from schemas.errors import Refused
from schemas.wording import one_line, printable, redacted


def report(
    out: Annotated[Folder, Parameter(help="The run folder, local or s3://, gs://.", group=under("Input"))],
    *,
    compare: Annotated[
        Folder | None,
        Parameter(help="A second run over the same rows: show where the answers differ.", group=under("Input")),
    ] = None,
    to: Annotated[
        Folder | None, Parameter(help="The page; .run/report.html in OUT when not given.", group=under("Output"))
    ] = None,
    rows: Annotated[int, Parameter(help="Show at most so many answers, 2,000 at most.", group=under("Output"))] = 2_000,
) -> int:
    """Write one page of HTML about a complete run, which needs no network and no other file.

    llava-batch report out/
    llava-batch report sweep/                  a page for each cell, and links to them from results.html
    llava-batch report out/ --compare out-with-another-prompt/ --to difference.html
    """
    try:
        paths = _write(out, to, compare, rows)
    except OSError as error:  # a full disk, a store that is away
        sys.stderr.write(f"error: {printable(redacted(one_line(error)))}\n")
        return 2 if isinstance(error, PermissionError) else 1
    sys.stdout.write("".join(f"{printable(redacted(path))}\n" for path in paths))
    return 0


def _write(out: str, to: str | None, compare: str | None, rows: int) -> list[str]:
    """Write the page of a run, or those of a sweep's cells; return where they are."""
    from pipeline.reports.report import write_report  # pyarrow and Pillow take a second that help need not wait for
    from pipeline.sweep.pages import is_sweep, write_pages

    if not out.strip() or not is_sweep(out):
        return [write_report(out, to, compare, rows)]
    if to is not None or compare is not None:
        raise Refused(f"--to and --compare are for the folder of a run, {out} is a sweep's: its cells are in cells/")
    return write_pages(out, rows)
