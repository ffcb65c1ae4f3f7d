"""What caption and ocr share: check, say what was found, run or dry-run, print the summary."""

import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from schemas.job import JobSettings

if TYPE_CHECKING:
    from pipeline.plan import Plan, Summary

DryRun = Annotated[
    bool, Parameter(negative=(), help="Read and preprocess 8 rows, show them and what would run; answer nothing.")
]
ABOUT_DEMO = (
    "note     the demo model reads printed text and names coloured shapes, nothing else; for photographs use a real "
    "checkpoint, as in --model llava-hf/llava-v1.6-mistral-7b-hf"
)
ContinueWithChanges = Annotated[
    bool, Parameter(negative=(), help="Go on in a folder whose run had other settings or input, and record it there.")
]


def answer(
    job: str, settings: JobSettings, *, default_prompt: str, dry_run: bool, continue_with_changes: bool = False
) -> int:
    """Run one job; returns the exit status. The last line of stdout is one JSON object."""
    # Torch and Ray take seconds to import: help, what is wrong with a flag and what is done already are said before.
    from pipeline.plan import find_complete, plan_job

    plan = plan_job(job, settings, default_prompt)
    if not dry_run and (complete := find_complete(plan)) is not None:
        return report(complete)
    if dry_run:
        return _dry_run(plan)
    from pipeline.dryrun import describe_plan
    from pipeline.job import run_job
    from pipeline.stages import load_engine

    sys.stderr.write(describe_plan(plan) + "\n")
    if settings.model == "demo":
        sys.stderr.write(ABOUT_DEMO + "\n")
    return run_to_status(lambda: report(run_job(plan, load_engine, continue_with_changes=continue_with_changes)))


def run_to_status(run: Callable[[], int]) -> int:
    """The exit status of a run, its own where nothing stops it: what stops it is said in a line, with how to go on."""
    from pipeline.answering import ErrorBudgetSpent
    from pipeline.dataflow import RunFailed
    from pipeline.stopping import Stopped

    try:
        return run()
    except ErrorBudgetSpent as error:
        sys.stderr.write(f"\nerror: {error}\n")
        return 1
    except RunFailed as error:
        sys.stderr.write(f"\nerror: {error}\nWhat is done stays; run the same command again to go on.\n")
        return 1
    except OSError as error:  # a full disk, a store that is away
        sys.stderr.write(f"\nerror: {error}\nWhat is done stays; run the same command again to go on.\n")
        return 1
    except (Stopped, KeyboardInterrupt) as stop:
        sys.stderr.write("stopped; what is done stays. Run the same command again to go on.\n")
        return stop.exit_status if isinstance(stop, Stopped) else 130


def report(summary: "Summary") -> int:
    """Print the last line."""
    line = {name: value for name, value in asdict(summary).items() if name != "scores" or value is not None}
    sys.stdout.write(json.dumps(line) + "\n")
    return 0


def _dry_run(plan: "Plan") -> int:
    from pipeline.dryrun import describe_plan, describe_rows
    from pipeline.duplicates import refuse_duplicate_ids
    from pipeline.machine import cards_here, check_machine

    refuse_duplicate_ids(plan.listing)
    sys.stderr.write(describe_plan(plan) + "\n" + describe_rows(plan) + "\n")
    check_machine(plan.settings, cards_here())
    return 0
