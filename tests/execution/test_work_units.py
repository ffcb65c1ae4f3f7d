"""Units on their way to workers."""

from pathlib import Path

import pytest

from pipeline.execution.work_units import BatchPlan, Shard
from pipeline.run_folder.markers import Markers
from pipeline.stages.preprocess import Preprocess
from schemas.job import JobSettings
from tests.fakes import load_echo_engine


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
        read=lambda _: pytest.fail("nothing is read here"),
        load_preprocess=Preprocess,
        folder=folder,
        run="r",
        markers=Markers(folder=f"{folder.rstrip('/')}/.run", driver="d"),
    )
    travelling, unit = BatchPlan.of([shard], [[7]], load_echo_engine).unit_at(0)
    assert (travelling.folder, travelling.markers.folder, unit) == (expected, f"{expected}/.run", 7)
