"""Units on their way to workers."""

import pickle
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.execution.work_units import BatchPlan, Owned, Shard, UnitKey
from pipeline.run_folder.lock import NAME
from pipeline.run_folder.markers import Markers
from pipeline.sources.columns import ColumnChoices
from pipeline.sources.listing import list_input
from pipeline.sources.open_files import OpenFiles
from pipeline.sources.reader import unit_reader
from pipeline.stages.preprocess import Preprocess
from schemas.errors import Failure
from schemas.job import JobSettings
from tests.fakes import load_echo_engine
from tests.inputs import good_row, write_parquet


class NoReader:
    def __call__(self, unit: int, failure: Failure | None = None) -> pa.Table:
        pytest.fail("nothing is read here")

    def narrowed(self, unit: int) -> "NoReader":
        return self

    def using(self, files: OpenFiles) -> "NoReader":
        return self


@pytest.mark.parametrize(
    ("folder", "expected"),
    [
        ("out", "{here}/out"),
        ("./a/../out/", "{here}/out"),
        ("{here}/out", "{here}/out"),
        ("s3://bucket/out", "s3://bucket/out"),
    ],
)
def test_workers_in_another_folder_find_that_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str, expected: str
) -> None:
    monkeypatch.chdir(tmp_path)
    folder, expected = folder.format(here=tmp_path), expected.format(here=tmp_path)
    shard = Shard(
        settings=JobSettings(input=("in",), output=folder),
        read=NoReader(),
        load_preprocess=Preprocess,
        folder=folder,
        run="r",
        markers=Markers(folder=f"{folder.rstrip('/')}/.run", driver="d"),
        lock=Owned(url=f"{folder.rstrip('/')}/.run/{NAME}", token="d"),
    )
    plan = BatchPlan.of([shard], [[7]], load_echo_engine)
    (travelling,) = plan.for_workers().shards
    assert (travelling.folder, travelling.markers.folder) == (expected, f"{expected}/.run")
    assert travelling.lock.url == f"{expected}/.run/{NAME}"
    assert [task.key for task in plan.tasks()] == [UnitKey(0, 7)]


def test_a_unit_travels_with_its_own_rows_and_not_with_the_listing(tmp_path: Path) -> None:
    source = write_parquet(tmp_path / "in.parquet", [good_row(i) for i in range(1000)])
    listing = list_input([str(source)], ColumnChoices(), unit_rows=1)
    read = unit_reader(listing)
    alone = pickle.dumps(read.narrowed(500))
    assert len(alone) < len(pickle.dumps(read)) / 5
    assert pickle.loads(alone)(500).equals(read(500))
