"""A driver to be killed: one job with a slow fake engine, as the command line would run it.

python -m tests.faults.driver INPUT OUTPUT MODEL [--wait SECONDS] [PROMPT]
"""

import sys
from collections.abc import Sequence

from jobs.answer import report, run_to_status
from jobs.ending import end_process
from pipeline.execution.executor import Loaders
from pipeline.job import run_job
from pipeline.plan import Plan, plan_job
from schemas.job import JobSettings
from tests.fakes import NotedPreprocess, load_slow_engine

LOADERS = Loaders(engine=load_slow_engine, preprocess=NotedPreprocess)
UNIT_ROWS = 8


def plan_of(argv: Sequence[str]) -> Plan:
    source, output, model, *rest = argv
    wait, prompt = (rest[1], rest[2:]) if rest[:1] == ["--wait"] else (0, rest)
    settings = {"input": (source,), "output": output, "model": model, "prompt": tuple(prompt), "gpus": 0}
    settings |= {"unit_rows": UNIT_ROWS, "preprocess_workers": 2, "max_error_rate": 1.0, "wait_for_cluster": wait}
    return plan_job("caption", JobSettings.model_validate(settings), "Q?")


def main(argv: Sequence[str]) -> int:
    try:
        plan = plan_of(argv)
        return run_to_status(lambda: report(run_job(plan, LOADERS), 1.0))
    except ValueError as error:  # as jobs/__main__.py
        sys.stderr.write(f"error: {error}\n")
        return 2


if __name__ == "__main__":
    end_process(main(sys.argv[1:]))
