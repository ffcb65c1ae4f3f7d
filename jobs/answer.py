"""What caption and ocr share: check, say what was found, run or dry-run, print the summary."""

import json
import sys
from dataclasses import asdict
from typing import Annotated

from cyclopts import Parameter

from schemas.job import JobSettings

DryRun = Annotated[
    bool, Parameter(negative=(), help="Read and preprocess 8 rows, show them and what would run; answer nothing.")
]
ABOUT_DEMO = (
    "note     the demo model reads printed text and names coloured shapes, nothing else; for photographs use a real "
    "checkpoint, as in --model llava-hf/llava-v1.6-mistral-7b-hf"
)


def answer(job: str, settings: JobSettings, *, default_prompt: str, dry_run: bool) -> int:
    """Run one job; returns the exit status. The last line of stdout is one JSON object."""
    # Torch, transformers and Ray take seconds to import: help and what is wrong with a flag are said before that.
    from pipeline.dryrun import describe_plan, describe_rows
    from pipeline.job import ErrorBudgetSpent, plan_job, run_job
    from pipeline.stages import load_engine

    plan = plan_job(job, settings, default_prompt)
    sys.stderr.write(describe_plan(plan) + "\n")
    if settings.model == "demo":
        sys.stderr.write(ABOUT_DEMO + "\n")
    if dry_run:
        sys.stderr.write(describe_rows(plan) + "\n")
        return 0
    try:
        summary = run_job(plan, load_engine)
    except ErrorBudgetSpent as error:
        sys.stderr.write(f"\nerror: {error}\n")
        return 1
    sys.stdout.write(json.dumps(asdict(summary)) + "\n")
    return 0
