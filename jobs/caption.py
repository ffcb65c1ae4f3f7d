"""caption: describe every image.

python -m jobs caption --input photos/ --output out/
python -m jobs caption --input s3://b/i/*.parquet --output s3://b/out --model llava-hf/llava-v1.6-mistral-7b-hf
"""

from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from jobs.answer import ContinueWithChanges, DryRun, Notify, answer
from jobs.flags import checked, with_headings
from schemas.job import JobSettings

if TYPE_CHECKING:
    Settings = JobSettings
else:
    Settings = with_headings(JobSettings)

PROMPT = "Describe the image in more details."


def caption(
    *,
    settings: Annotated[Settings, Parameter(name="*")],
    dry_run: DryRun = False,
    continue_with_changes: ContinueWithChanges = False,
    notify: Notify = None,
) -> int:
    """Describe every image of the input, or answer questions about it.

    llava-batch caption --input photos/ --output out/
    llava-batch caption --input photos/ --output out/ --prompt "What is for sale here?" --limit 20 --dry-run
    llava-batch caption --input 's3://b/laion/*.parquet' --output s3://b/captions --keep url --gpus 8
    """
    return answer(
        "caption",
        checked(settings, JobSettings),
        default_prompt=PROMPT,
        dry_run=dry_run,
        continue_with_changes=continue_with_changes,
        notify=notify,
    )
