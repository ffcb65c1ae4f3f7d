"""Answer: the part that caption and ocr share: check, say what was found, run or dry-run, print the summary."""

import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from schemas.errors import Refused
from schemas.job import JobSettings
from schemas.wording import GO_ON

if TYPE_CHECKING:
    from pipeline.plan import Plan, Summary

DryRun = Annotated[
    bool,
    Parameter(
        negative=(),
        show_default=False,
        help="Read and preprocess 8 rows, show them and what would run; answer nothing.",
    ),
]
# Lines of at most 80 columns, as a terminal breaks others in the middle of a word.
ABOUT_DEMO = (
    "note     the demo model reads printed text and names coloured shapes, no more;\n"
    "         photographs want a real one: --model llava-hf/llava-v1.6-mistral-7b-hf"
)
ContinueWithChanges = Annotated[
    bool,
    Parameter(
        negative=(),
        show_default=False,
        help="Go on in a folder whose run had other settings or input, and record it there.",
    ),
]
Notify = Annotated[
    str | None,
    Parameter(
        show_default=False,
        help="Post how the run ended to this http(s) URL, as JSON with a line for a chat; it is written nowhere.",
    ),
]


def answer(
    job: str,
    settings: JobSettings,
    *,
    default_prompt: str,
    dry_run: bool,
    continue_with_changes: bool = False,
    notify: str | None = None,
) -> int:
    """Run one job; return the exit status, which `notify` is told. The last line of stdout is one JSON object."""
    return told(
        notify_of(notify, dry_run=dry_run),
        settings.output,
        lambda: _answer(job, settings, default_prompt, dry_run=dry_run, continue_with_changes=continue_with_changes),
    )


def notify_of(notify: str | None, *, dry_run: bool) -> str | None:
    """Return the URL that is told of the end; a dry run tells nobody, and refuses what is no URL all the same."""
    if notify is None or not dry_run:
        return notify
    from pipeline.notify import check_url

    check_url(notify)
    return None


def told(notify: str | None, folder: str, run: Callable[[], int]) -> int:
    """Return the exit status of what works on a folder; tell the URL, where there is one, how it has ended."""
    if notify is None:
        return run()
    from pipeline import notify as end

    end.check_url(notify)
    status, began = 1, datetime.now(UTC)  # of a bug
    try:
        status = run()
    except Refused:
        status = 2
        raise
    finally:
        end.notify(notify, folder, status, began)
    return status


def _answer(job: str, settings: JobSettings, default_prompt: str, *, dry_run: bool, continue_with_changes: bool) -> int:
    # Torch and Ray take seconds to import: help, what is wrong with a flag and what is done already are said before.
    from pipeline.environment import cards_here, check_gpus
    from pipeline.plan import find_complete, plan_job
    from pipeline.preflight import check_output, check_writable

    try:
        check_writable(settings.output)
        plan, cards = plan_job(job, settings, default_prompt), cards_here()
        complete = None if dry_run else find_complete(plan)
    except OSError as error:
        return fail(error)
    if complete is not None:
        return report(complete, settings.max_error_rate)
    check_gpus(settings.gpus, cards)
    if dry_run:
        check_output(plan, continue_with_changes=continue_with_changes)
        return _dry_run(plan, cards)
    from pipeline.dryrun import describe_plan
    from pipeline.job import run_job
    from pipeline.stages.engine_settings import load_engine

    say(describe_plan(plan, cards))
    if settings.model == "demo":
        say(ABOUT_DEMO)

    def run() -> int:
        summary = run_job(plan, load_engine, continue_with_changes=continue_with_changes)
        return report(summary, settings.max_error_rate)

    return run_to_status(run)


def run_to_status(run: Callable[[], int]) -> int:
    """Return the exit status of a run. Say what stops it in a line, with how to go on."""
    from pipeline.execution.cluster_watch import ClusterLost
    from pipeline.execution.executor import ErrorBudgetSpent
    from pipeline.execution.ray_errors import RunFailed
    from pipeline.execution.signals import Stopped, stopped_line
    from pipeline.run_folder.lock import FolderLost

    try:
        return run()
    except (ErrorBudgetSpent, FolderLost) as error:
        say(f"\nerror: {error}")
        return 1
    except (RunFailed, ClusterLost, OSError) as error:
        return fail(error)
    except (Stopped, KeyboardInterrupt) as stop:
        say(stopped_line())
        return stop.exit_status if isinstance(stop, Stopped) else 130


def fail(error: Exception) -> int:
    """Say what ended a run, as a full disk or a store that is away, and how to go on; return the exit status."""
    say(f"\nerror: {error}\n{GO_ON}")
    return 1


def report(summary: "Summary", max_error_rate: float) -> int:
    """Say what the run came to and print the last line. The exit status is 1 where no row has an answer, unless that
    was allowed."""
    from pipeline.reports.outcome import describe_outcome

    say(describe_outcome(summary))
    line = {name: value for name, value in asdict(summary).items() if name != "scores" or value is not None}
    sys.stdout.write(json.dumps(line) + "\n")
    if summary.ok or not summary.errors or max_error_rate >= 1:
        return 0
    say(f"error: all {summary.errors:,} answers failed; --max-error-rate 1 takes that for a success")
    return 1


def say(text: str) -> None:
    """Tell the person who waits."""
    sys.stderr.write(text + "\n")


def _dry_run(plan: "Plan", cards: tuple[int, ...]) -> int:
    """Show the plan and some rows; the exit status is 1 where none of these rows could be answered."""
    from pipeline.dryrun import describe_plan, sample_rows
    from pipeline.preflight import check_machine
    from pipeline.sources.duplicates import refuse_duplicate_ids

    refuse_duplicate_ids(plan.listing)
    say(describe_plan(plan, cards))
    check_machine(plan.settings, cards)
    sampled = sample_rows(plan)
    say(sampled.lines)
    if sampled.failed < sampled.rows or plan.settings.max_error_rate >= 1:
        return 0
    say(f"error: all {sampled.rows} rows that were read fail; the job would give no answer to them")
    return 1
