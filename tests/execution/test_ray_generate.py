"""A generating worker, called as Ray calls it, without Ray."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.execution.ray_generate import _GenerateAndWrite
from pipeline.execution.work_units import BatchPlan, Owned, Shard, UnitKey, pack
from pipeline.run_folder.lock import hold
from pipeline.run_folder.markers import Markers
from pipeline.run_folder.units import done_units
from pipeline.stages.locks import RWLock
from pipeline.stages.preprocess import Preprocess
from schemas.job import JobSettings
from schemas.sample import Prompt, Sample, samples_to_table
from tests.execution.test_work_units import NoReader
from tests.fakes import load_echo_engine


class Shared(RWLock):
    """Counts those who hold it together."""

    num = 0

    @contextmanager
    def shared(self) -> Iterator[None]:
        with super().shared():
            self.num += 1
            try:
                yield
            finally:
                self.num -= 1


class Written(Shard):
    """Notes how many hold the gate while answers are written."""

    gate = Shared()

    def write(self, unit: int, answers: pa.Table) -> None:
        assert self.gate.num == 1
        super().write(unit, answers)


def test_answers_are_written_while_no_unit_is_alone(tmp_path: Path) -> None:
    folder = str(tmp_path)
    sample = Sample(id="a", prompts=(Prompt(id="prompt", text="Q?", token_ids=np.array([1, 2], np.int32)),))
    with hold(folder) as lock:
        shard = Written(
            settings=JobSettings(input=("in",), output=folder),
            read=NoReader(),
            load_preprocess=Preprocess,
            folder=folder,
            run="r",
            markers=Markers(folder=f"{folder}/.run", driver="d"),
            lock=Owned.of(lock),
        )
        worker = _GenerateAndWrite(BatchPlan.of([shard], [[7]], load_echo_engine), on_gpu=False)
        worker._gate = Written.gate
        report = worker.answer(pack(UnitKey(0, 7), samples_to_table([sample])), attempt=0)
    assert (report.counts.rows, done_units(folder)) == (1, {7})
