"""sweep: models x benchmarks x prompts x settings, each scored, in one table.

python -m jobs sweep --config sweep.yaml
python -m jobs sweep --config sweep.yaml --limit 20 --dry-run
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from pydantic import BaseModel, Field, ValidationError

from jobs.answer import Notify, notify_of, run_to_status, told
from jobs.config import is_storage_option, read_config
from jobs.flags import File, Folder
from schemas.errors import Refused
from schemas.sweep import SweepSettings
from schemas.wording import describe_settings

if TYPE_CHECKING:
    from pipeline.sweep.sweep import SweepSummary


class Bounds(BaseModel):
    """Bounds of one call's share of a sweep."""

    limit: int | None = Field(None, description="Take the first N questions of each benchmark only.")
    minutes: float | None = Field(None, description="Stop the sweep after these; the next call goes on.")
    cell_minutes: float | None = Field(None, description="Stop a cell after these; the next call goes on.")


_NONE = Bounds()


def sweep(
    *,
    config: Annotated[File, Parameter(help="The YAML file of the sweep; flags override it.")],
    output: Annotated[Folder | None, Parameter(help="The sweep's folder, local or s3://, gs://.")] = None,
    bounds: Annotated[Bounds, Parameter(name="*")] = _NONE,
    dry_run: Annotated[
        bool, Parameter(negative=(), help="Write the inputs, show the cells and what is complete; answer nothing.")
    ] = False,
    notify: Notify = None,
) -> int:
    """Answer benchmarks with models, prompts and settings, score each cell and write out/results.{parquet,md,html}."""
    flags = {"output": output, **bounds.model_dump()}
    settings = read_settings(config, {name: value for name, value in flags.items() if value is not None})
    return told(
        notify_of(notify, dry_run=dry_run),
        settings.output,
        lambda: run_to_status(lambda: _sweep(settings, dry_run=dry_run)),
    )


def _sweep(settings: SweepSettings, *, dry_run: bool) -> int:
    # Torch and Ray take seconds to import: help and what is wrong with the file are said before.
    from jobs.benchmarks import BENCHMARKS
    from pipeline.preflight import check_writable
    from pipeline.scoring.packages import check_scoring
    from pipeline.stages.engine_settings import load_engine
    from pipeline.sweep.plan import plan_sweep
    from pipeline.sweep.sweep import run_sweep

    check_writable(settings.output)
    check_scoring("a sweep")
    plan = plan_sweep(settings, BENCHMARKS)
    sys.stderr.write(plan.describe() + "\n")
    return 0 if dry_run else report(run_sweep(plan, load_engine))


def report(summary: "SweepSummary") -> int:
    """Print the last line; the exit status is 0 when every cell is complete and has answers."""
    sys.stdout.write(json.dumps(asdict(summary)) + "\n")
    if summary.failed:
        sys.stderr.write(f"{summary.failed} of {summary.cells} cells have no answer: every row of theirs failed\n")
    return 1 if summary.incomplete or summary.failed else 0


def read_settings(config: Path, flags: dict[str, Any]) -> SweepSettings:
    """Return the settings in a YAML file, `flags` over them; raise Refused naming file, line, key, rule and value."""
    found = read_config(config)
    settings = {name: value for name, value in found.settings.items() if not is_storage_option(name)}
    try:
        return SweepSettings.model_validate({**settings, **flags})
    except ValidationError as error:
        lines = describe_settings(error, of="a sweep", known=SweepSettings.model_fields)
        first = found.at(*error.errors()[0]["loc"])
        raise Refused("\n".join([f"{first}: {lines[0]}", *lines[1:]])) from error
