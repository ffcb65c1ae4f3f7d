"""ocr: read the text of every image.

python -m jobs ocr --input scans/ --output out/
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from pydantic import Field

from jobs.answer import ContinueWithChanges, DryRun, Notify, answer
from jobs.flags import checked, with_headings
from schemas.job import JobSettings


class OcrSettings(JobSettings):
    """A job's settings for reading: long answers, and none that go round in a circle."""

    max_new_tokens: int = Field(4096, ge=1, description="Longest answer, in tokens; less where the context is full.")
    cut_repetition: bool = Field(
        True, description="End an answer that repeats itself without end, and try it once more with retry_penalty."
    )


if TYPE_CHECKING:
    Settings = OcrSettings
else:
    Settings = with_headings(OcrSettings)


def ocr(
    *,
    settings: Annotated[Settings, Parameter(name="*")],
    dry_run: DryRun = False,
    continue_with_changes: ContinueWithChanges = False,
    notify: Notify = None,
) -> int:
    """Read the text in every image of the input.

    llava-batch ocr --input scans/ --output out/
    llava-batch ocr --input scans/ --output out/ --strips auto --reference-column truth
    """
    settings = checked(settings, OcrSettings)
    return answer(
        "ocr",
        settings,
        default_prompt=ocr_prompt(settings),
        dry_run=dry_run,
        continue_with_changes=continue_with_changes,
        notify=notify,
    )


def ocr_prompt(settings: JobSettings) -> str:
    """Return the question that the model was taught to be asked for its reading; raise Refused where there is no
    model."""
    from pipeline.checkpoint import pin
    from pipeline.weights.hub import locate

    if not (Path(locate(settings.model)) / "config.json").exists():
        pin(settings.model, settings.revision)  # refuses what is no model, which the next line could only die of
    from pipeline.preprocess.reading import reading_prompt  # transformers takes seconds that help need not wait for

    return reading_prompt(settings.model, settings.revision)
