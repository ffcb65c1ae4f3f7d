"""A driver of a sweep to be killed, told its folder by the arguments that one of a job has.

python -m tests.faults.sweep_driver INPUT OUTPUT MODEL
"""

import sys
from collections.abc import Sequence

from jobs.answer import run_to_status
from jobs.ending import end_process
from jobs.sweep import report
from pipeline.sweep.plan import plan_sweep
from pipeline.sweep.sweep import run_sweep
from schemas.sweep import SweepSettings
from tests.faults.driver import LOADERS
from tests.sweep.quiz import QUIZ


def main(argv: Sequence[str]) -> int:
    _, output, model = argv
    settings = {
        "output": output,
        "models": {"tiny": model},
        "benchmarks": {"long": {"benchmark": "quiz", "data": "600"}},
        "job": {"unit_rows": 4, "gpus": 0, "preprocess_workers": 1},
    }
    plan = plan_sweep(SweepSettings.model_validate(settings), [QUIZ])
    return run_to_status(lambda: report(run_sweep(plan, LOADERS)))


if __name__ == "__main__":
    end_process(main(sys.argv[1:]))
