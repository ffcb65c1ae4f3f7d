"""A driver of a sweep to be killed, told its folder by the arguments that one of a job has.

python -m tests.faults.sweep_driver INPUT OUTPUT MODEL
"""

import sys
from collections.abc import Sequence

from jobs.answer import run_to_status
from jobs.sweep import report
from pipeline.sweep.plan import plan_sweep
from pipeline.sweep.sweep import run_sweep
from tests.faults.driver import LOADERS
from tests.sweep.quiz import QUIZ, quiz_settings


def main(argv: Sequence[str]) -> int:
    _, output, _ = argv
    settings = quiz_settings(output, benchmarks={"long": {"benchmark": "quiz", "data": "600"}})
    plan = plan_sweep(settings, [QUIZ])
    return run_to_status(lambda: report(run_sweep(plan, LOADERS)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
