"""retry-failed: the failed rows of a complete run once more, or those that were cut, under other settings if wanted.

python -m jobs retry-failed out/
python -m jobs retry-failed out/ --stage fetch
python -m jobs retry-failed out/ --finish-reason length --max-new-tokens 1024
"""

from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from pydantic import BaseModel, Field

from jobs.answer import ContinueWithChanges, Notify, report, run_to_status, told
from jobs.flags import RETRIED, Folder, under, with_options
from schemas.answer import FinishReason
from schemas.errors import Stage

_ROWS = Parameter(group=under("Rows"))


class Rows(BaseModel):
    """Choice of rows that are answered again."""

    stage: Annotated[Stage | None, _ROWS] = Field(None, description="Only rows that failed at this stage.")
    error_type: Annotated[str | None, Parameter(name=("--error-type", "--type"), group=under("Rows"))] = Field(
        None, description="Only rows that failed with this error_type."
    )
    finish_reason: Annotated[FinishReason | None, _ROWS] = Field(
        None, description="Instead of failed rows: those whose answer ended so."
    )
    prompt_id: Annotated[str | None, _ROWS] = Field(None, description="Only answers to the prompt of this name.")


if TYPE_CHECKING:
    Choices = Rows
else:
    Choices = with_options(Rows, RETRIED)

_ALL = Choices()


def retry_failed(
    out: Annotated[Folder, Parameter(help="The run folder, local or s3://, gs://.", group=under("Rows"))],
    *,
    choices: Annotated[Choices, Parameter(name="*")] = _ALL,
    continue_with_changes: ContinueWithChanges = False,
    notify: Notify = None,
) -> int:
    """Answer failed rows of a complete run again; new answers replace the old, which .run/attempts/ keeps.

    llava-batch retry-failed out/ --stage fetch
    llava-batch retry-failed out/ --finish-reason length --max-new-tokens 1024

    Settings that are given hold for these rows alone, and run.json says so; a text stays where the new try has none.
    """
    # Torch and Ray take seconds to import: help and what is wrong with a flag are said before that.
    from pipeline.execution.executor import Loaders
    from pipeline.retry import Choice, retry_failed
    from pipeline.stages.engine_settings import load_engine

    given = choices.model_dump(exclude_none=True)
    rows = {name: given.pop(name) for name in Rows.model_fields if name in given}
    allowed = given.get("max_error_rate", 0.0)
    choice = Choice(**rows, settings=given, continue_with_changes=continue_with_changes)

    def run() -> int:
        return report(retry_failed(out, choice, Loaders(engine=load_engine)), allowed)

    return told(notify, out, lambda: run_to_status(run))
