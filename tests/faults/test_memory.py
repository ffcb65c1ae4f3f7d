"""What the driver of a long run holds on to."""

import gc
from pathlib import Path

import pytest
from ray.data.block import BlockStats

from pipeline.execution.placement import Load
from pipeline.execution.ray_cluster import plan_placement
from pipeline.execution.ray_data import run_units
from pipeline.execution.work_units import BatchPlan, Owned, Shard
from pipeline.plan import plan_job
from pipeline.run_folder.lock import hold
from pipeline.run_folder.markers import Markers
from pipeline.sources.reader import unit_reader
from pipeline.stages.preprocess import Preprocess
from schemas.job import JobSettings
from tests.fakes import load_echo_engine
from tests.inputs import good_row, write_parquet
from tests.tiny import checkpoint

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300), pytest.mark.usefixtures("cluster")]


@pytest.mark.soak
def test_the_driver_forgets_units_that_are_done(tmp_path: Path) -> None:
    source = write_parquet(tmp_path / "in.parquet", [good_row(i) for i in range(200)])
    placed = {"input": (str(source),), "output": str(tmp_path / "out"), "model": str(checkpoint())}
    settings = JobSettings.model_validate({**placed, "unit_rows": 1, "gpus": 0, "preprocess_workers": 2})
    plan = plan_job("caption", settings, "Q?")
    load = Load(units=200, prompts=200)
    placement = plan_placement(plan.settings, load)
    with hold(settings.output) as lock:
        shard = Shard(
            settings=plan.settings,
            read=unit_reader(plan.listing),
            load_preprocess=Preprocess,
            folder=settings.output,
            run="a run",
            markers=Markers(folder=settings.output, driver="a driver"),
            lock=Owned.of(lock),
        )
        batch_plan = BatchPlan.of([shard], [range(200)], load_echo_engine)
        kept = [num_alive(BlockStats) for _ in run_units(batch_plan, placement, load)]
    assert len(kept) == 200
    assert kept[-1] < 200  # three stages gave out a block a unit


def num_alive(kind: type) -> int:
    return sum(issubclass(type(one), kind) for one in gc.get_objects())  # asked of the type: some objects warn
