"""doctor: what this machine has for a job, and the command that mends what it lacks.

python -m jobs doctor
python -m jobs doctor --config job.yaml
"""

import sys
from typing import TYPE_CHECKING

from cyclopts import Parameter
from pydantic import BaseModel

from jobs.flags import settings_from, with_options
from schemas.job import KINDS
from schemas.wording import printable, redacted

if TYPE_CHECKING:
    from typing import Annotated

    Choices = BaseModel
else:
    from typing import Annotated

    Choices = with_options(BaseModel, tuple(KINDS))

_ALL = Choices()


def doctor(*, choices: Annotated[Choices, Parameter(name="*")] = _ALL) -> int:
    """Look at Python, packages, driver, cards, Ray, disk, shared memory, file limits, and what the settings need.

    llava-batch doctor
    llava-batch doctor --config job.yaml
    llava-batch doctor --input 's3://b/laion/*.parquet' --output s3://b/out --model llava-hf/llava-v1.6-mistral-7b-hf

    Each line that fails has the command that mends it below; exit status 1 where any does.
    """
    from pipeline.doctor import NO_INPUT, NO_OUTPUT, examine
    from pipeline.preprocess.forms import check_job_form

    base = {"input": (NO_INPUT,), "output": NO_OUTPUT}
    settings = settings_from({**base, **choices.model_dump(exclude_none=True)})
    check_job_form(settings)  # what no answer can be held to is bad usage here as well
    failed = 0
    for finding in examine(settings):
        failed += finding.state == "fail"
        sys.stdout.write(f"{finding.state:<4}  {finding.name:<18} {printable(redacted(finding.found))}\n")
        if finding.mend is not None:
            sys.stdout.write(f"      {'':<18} {finding.mend}\n")
        sys.stdout.flush()
    sys.stdout.write(f"{failed} of these must be mended\n" if failed else "nothing stands in the way of a job\n")
    return 1 if failed else 0
