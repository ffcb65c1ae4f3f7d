"""caption: describe every image.

python -m jobs caption --input photos/ --output out/
python -m jobs caption --input s3://b/i/*.parquet --output s3://b/out --model llava-hf/llava-v1.6-mistral-7b-hf
"""

from typing import Annotated

from cyclopts import Parameter

from jobs.answer import ContinueWithChanges, DryRun, answer
from schemas.job import JobSettings

PROMPT = "Describe the image in more details."


def caption(
    *,
    settings: Annotated[JobSettings, Parameter(name="*")],
    dry_run: DryRun = False,
    continue_with_changes: ContinueWithChanges = False,
) -> int:
    """Describe every image of the input."""
    return answer(
        "caption",
        settings,
        default_prompt=PROMPT,
        dry_run=dry_run,
        continue_with_changes=continue_with_changes,
    )
