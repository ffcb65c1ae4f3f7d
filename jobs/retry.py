"""retry-failed: the failed rows of a complete run once more.

python -m jobs retry-failed out/
python -m jobs retry-failed out/ --stage fetch
"""

from typing import Annotated

from cyclopts import Parameter

from jobs.answer import ContinueWithChanges, report, run_to_status
from schemas.errors import Stage


def retry_failed(
    out: Annotated[str, Parameter(help="The run folder, local or s3://, gs://.")],
    *,
    error_type: Annotated[str | None, Parameter(help="Only rows of this error_type.")] = None,
    stage: Annotated[Stage | None, Parameter(help="Only rows that failed at this stage.")] = None,
    gpus: Annotated[int | None, Parameter(help="GPUs in all; all of the cluster's when not given.")] = None,
    continue_with_changes: ContinueWithChanges = False,
) -> int:
    """Answer the failed rows of a complete run again; new answers replace the old, which attempts/ keeps."""
    # Torch and Ray take seconds to import: help and what is wrong with a flag are said before that.
    from pipeline.answering import Loaders
    from pipeline.retry import Choice, retry_failed
    from pipeline.stages import load_engine

    choice = Choice(error_type=error_type, stage=stage, gpus=gpus, continue_with_changes=continue_with_changes)
    return run_to_status(lambda: report(retry_failed(out, choice, Loaders(engine=load_engine))))
