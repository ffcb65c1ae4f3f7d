"""Metrics of a real job, read as Prometheus does, from Ray's own agent."""

import re
import time
from pathlib import Path
from urllib.request import urlopen

import pytest

from pipeline.execution.metrics import names
from pipeline.execution.ray_cluster import metrics_address
from pipeline.job import run_job
from pipeline.plan import plan_job
from pipeline.stages.engine_settings import load_engine
from schemas.job import JobSettings
from tests.inputs import bad_row, good_row, write_parquet
from tests.tiny import checkpoint

pytestmark = [pytest.mark.ray, pytest.mark.soak, pytest.mark.timeout(300), pytest.mark.usefixtures("cluster")]
NONE = {"retries", "units_again", "reused"}  # this job has none of them


def scraped(run: str, until: str, within_s: float = 90.0) -> str:
    """The page, once it has a line; Ray's processes report every ten seconds."""
    ends = time.monotonic() + within_s
    while True:
        with urlopen(metrics_address(), timeout=10) as page:
            lines = [line for line in page.read().decode().splitlines() if f'run="{run}"' in line]
        text = "\n".join(lines)
        if until in text or time.monotonic() > ends:
            return text
        time.sleep(2)


def test_a_scrape_finds_every_metric_under_its_name(tmp_path: Path) -> None:
    rows = [bad_row(i, "decode") if i == 3 else good_row(i) for i in range(24)]
    source = write_parquet(tmp_path / "in.parquet", rows)
    base = {"input": (str(source),), "output": str(tmp_path / "out"), "model": str(checkpoint()), "max_error_rate": 1.0}
    settings = JobSettings.model_validate({**base, "unit_rows": 4, "preprocess_workers": 1, "max_new_tokens": 4})
    assert run_job(plan_job("caption", settings, "Q?"), load_engine).rows == 24

    page = scraped(settings.output, 'status="ok"')

    missing = {name for name in names() if f"{name}{{" not in page}
    assert missing <= {f"ray_llava_batch_{one}_total" for one in NONE}
    ok, failed = (re.search(rf'answers_total{{[^}}]*status="{one}"[^}}]*}} (\S+)', page) for one in ("ok", "error"))
    assert ok is not None
    assert failed is not None
    assert (float(ok[1]), float(failed[1])) == (23.0, 1.0)
