"""A driver whose cluster's machines come and go: an engine for each GPU, real or not, that takes 50 ms a row.

python -m tests.faults.nodes_driver INPUT OUTPUT MODEL [SETTING=NUMBER ...] [slow_preprocess=1]
"""

import sys
from collections.abc import Sequence

from jobs.answer import report, run_to_status
from jobs.ending import end_process
from pipeline.execution.executor import Loaders
from pipeline.job import run_job
from pipeline.plan import plan_job
from schemas.job import JobSettings
from tests.fakes import NotedPreprocess, SlowPreprocess, load_slow_engine
from tests.faults.driver import UNIT_ROWS


def main(argv: Sequence[str]) -> int:
    source, output, model, *rest = argv
    given = {name: int(value) for name, value in (one.split("=") for one in rest)}
    preprocess = SlowPreprocess if given.pop("slow_preprocess", 0) else NotedPreprocess
    settings = {"input": (source,), "output": output, "model": model, "unit_rows": UNIT_ROWS, "max_error_rate": 1.0}
    plan = plan_job("caption", JobSettings.model_validate({**settings, **given}), "Q?")
    loaders = Loaders(engine=load_slow_engine, preprocess=preprocess)
    return run_to_status(lambda: report(run_job(plan, loaders), 1.0))


if __name__ == "__main__":
    end_process(main(sys.argv[1:]))
