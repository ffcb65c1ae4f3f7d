"""Forecasts of plan --calibrate beside what jobs of the demo model take then, on a machine that is quiet enough."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.forecast import JOBS

BUSY = 1.0  # processes a core that want to run: a forecast of a machine whose load changes says nothing


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_three_jobs_take_what_is_forecast(tmp_path: Path) -> None:
    if os.getloadavg()[0] > BUSY * (os.cpu_count() or 1):
        pytest.skip("this machine is at work: a forecast holds where its load stays as it is")
    command = [sys.executable, "-m", "benchmarks.forecast", "--out", str(tmp_path), "--rows", "240"]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], stdout=subprocess.PIPE, check=True)
    found = json.loads(done.stdout.splitlines()[-1])["jobs"]
    assert [one["job"] for one in found] == list(JOBS)
    assert {one["job"]: one["off"] for one in found if abs(one["off"]) > 0.2} == {}
