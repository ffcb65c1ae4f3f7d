"""verify: read a whole run folder and say whether it holds what it promises.

python -m jobs verify out/
"""

import sys
from typing import Annotated

from cyclopts import Parameter

from jobs.flags import Folder
from schemas.wording import counted, printable, redacted


def verify(out: Annotated[Folder, Parameter(help="The run folder, local or s3://, gs://.")]) -> int:
    """Check that every row and prompt of the input has exactly one answer, and every file its hash."""
    from pipeline.verify import verify_run  # pyarrow takes a second that help need not wait for

    problems = verify_run(out)
    for problem in problems:
        sys.stdout.write(printable(redacted(problem)) + "\n")
    sys.stdout.write(
        f"{out}: {counted(len(problems), 'problem')}\n" if problems else f"{out}: every answer is there, once\n"
    )
    return 1 if problems else 0
