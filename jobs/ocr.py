"""ocr: read the text of every image.

python -m jobs ocr --input scans/ --output out/
"""

from typing import Annotated

from cyclopts import Parameter
from pydantic import Field

from jobs.answer import ContinueWithChanges, DryRun, answer
from schemas.job import JobSettings

PROMPT = "What does the text say?"


class OcrSettings(JobSettings):
    """A job's settings with room for long answers."""

    max_new_tokens: int = Field(1024, ge=1, description="Longest answer, in tokens.")


def ocr(
    *,
    settings: Annotated[OcrSettings, Parameter(name="*")],
    dry_run: DryRun = False,
    continue_with_changes: ContinueWithChanges = False,
) -> int:
    """Read the text in every image of the input."""
    return answer(
        "ocr",
        settings,
        default_prompt=PROMPT,
        dry_run=dry_run,
        continue_with_changes=continue_with_changes,
    )
