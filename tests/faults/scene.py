"""The scene of a fault: an input, drivers as processes of their own, and the verdict at the end."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.run_folder.units import done_units
from pipeline.storage import filesystem as fs
from pipeline.verify import verify_run
from tests.faults.driver import UNIT_ROWS
from tests.inputs import bad_row, good_row, write_parquet
from tests.tiny import checkpoint

ROOT = Path(__file__).parents[2]
PATIENCE_S = 300.0


@dataclass(slots=True, kw_only=True)
class Scene:
    """`address` is the cluster that drivers join; with None each starts a Ray of its own.

    Input and output are in `store`, the url of a bucket, or else in `folder`.
    """

    folder: Path
    rows: int = 160
    address: str | None = None
    store: str | None = None
    program: str = "tests.faults.driver"
    output: Path = field(default=Path())

    def __post_init__(self) -> None:
        self.output = self.folder / "out"
        table = [bad_row(i, "decode") if i % 50 == 7 else good_row(i) for i in range(self.rows)]
        source = write_parquet(self.folder / "in.parquet", table)
        if self.store:
            fs.write_atomic(f"{self.store}/in.parquet", source.read_bytes())

    @property
    def url(self) -> str:
        return f"{self.store or self.folder}/out"

    def arguments(self, *prompt: str) -> list[str]:
        return [f"{self.store or self.folder}/in.parquet", self.url, str(checkpoint()), *prompt]

    @contextmanager
    def driver(self, *prompt: str) -> Iterator[subprocess.Popen[str]]:
        """A driver at work; killed at the end of the block where it still is."""
        environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        if self.address:
            environment["RAY_ADDRESS"] = self.address
        command = [sys.executable, "-m", self.program, *self.arguments(*prompt)]
        log = (self.folder / "driver.log").open("a")
        run = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log, text=True)
        try:
            yield run
        finally:
            if run.poll() is None:
                run.kill()
            run.wait()
            log.close()

    def log(self) -> str:
        return (self.folder / "driver.log").read_text()

    def units(self) -> list[Path]:
        folders = [self.output / "units", *self.output.glob("cells/*/*/*/*/units")]
        return sorted(path for folder in folders for path in folder.glob("unit-*.parquet"))

    def num_done(self) -> int:
        return len(done_units(self.url))

    def has(self, name: str) -> bool:
        return fs.exists(f"{self.url}/{name}")

    def workers(self, work: str) -> list[int]:
        """The processes, alive or not, that have begun this work."""
        return [int(path.name.rsplit("-", 1)[1]) for path in (self.folder / "pids").glob(f"{work}-*")]

    def wait_for(self, there: Callable[[], bool], run: subprocess.Popen[str]) -> bool:
        """Whether it came to that before the driver was done."""
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            if there():
                return True
            if run.poll() is not None:
                return False
            time.sleep(0.02)
        raise AssertionError(f"not within {PATIENCE_S:.0f} s; the driver said:\n{self.log()}")

    def finish(self) -> None:
        """Run undisturbed to the end, which must be a good one."""
        with self.driver() as run:
            assert run.wait(timeout=PATIENCE_S) == 0, self.log()
        self.assert_whole()

    def assert_whole(self) -> None:
        """verify is green and the ids are those of the input, each once and in order."""
        assert verify_run(self.url) == []
        files = fs.list_folder(f"{self.url}/answers", (".parquet",))
        tables = [pq.read_table(pa.BufferReader(fs.read_bytes(file.url))) for file in files]
        ids = pa.concat_tables(tables)["id"].to_pylist()
        assert ids == [f"row-{i}" for i in range(self.rows)]


def killed_when(scene: Scene, moment: Callable[[], bool], pause_s: float = 0.0) -> bool:
    """Whether one driver was killed so long after that moment; else it was done before."""
    with scene.driver() as run:
        if scene.wait_for(moment, run):
            time.sleep(pause_s)
        if run.poll() is not None:
            return False
        run.kill()
    return True


def kill_at_random(scene: Scene, draw: random.Random) -> bool:
    """Whether a driver was killed: early, at its work, in the merge, or just after the manifest."""
    done = scene.num_done()
    moments = [
        lambda: scene.has(".run/run.json"),
        lambda: scene.num_done() > done,
        lambda: scene.has("answers"),
        lambda: scene.has(".run/manifest.json"),
    ]
    early = done < scene.rows // UNIT_ROWS - 5
    return killed_when(scene, draw.choice(moments[:2] if early else moments), draw.uniform(0, 1.5))


def kill(pids: list[int]) -> None:
    """SIGKILL to those of these processes that are still there."""
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
