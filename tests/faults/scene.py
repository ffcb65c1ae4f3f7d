"""The scene of a fault: an input, drivers as processes of their own, and the verdict at the end."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow.parquet as pq

from pipeline.verify import verify_run
from tests.inputs import bad_row, good_row, write_parquet
from tests.tiny import checkpoint

ROOT = Path(__file__).parents[2]
PATIENCE_S = 120.0


@dataclass(slots=True, kw_only=True)
class Scene:
    """`address` is the cluster that drivers join; with None each starts a Ray of its own."""

    folder: Path
    rows: int = 160
    address: str | None = None
    output: Path = field(default=Path())

    def __post_init__(self) -> None:
        self.output = self.folder / "out"
        table = [bad_row(i, "decode") if i % 50 == 7 else good_row(i) for i in range(self.rows)]
        write_parquet(self.folder / "in.parquet", table)

    def arguments(self, *prompt: str) -> list[str]:
        return [str(self.folder / "in.parquet"), str(self.output), str(checkpoint()), *prompt]

    @contextmanager
    def driver(self, *prompt: str) -> Iterator[subprocess.Popen[str]]:
        """A driver at work; killed at the end of the block where it still is."""
        environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        if self.address:
            environment["RAY_ADDRESS"] = self.address
        command = [sys.executable, "-m", "tests.faults.driver", *self.arguments(*prompt)]
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
        return sorted((self.output / "units").glob("unit-*.parquet"))

    def workers(self, work: str) -> list[int]:
        """The processes, alive or not, that have begun this work."""
        return [int(path.name.rsplit("-", 1)[1]) for path in (self.folder / "pids").glob(f"{work}-*")]

    def wait_for(self, there: Callable[[], bool], run: subprocess.Popen[str]) -> bool:
        """Whether it came to that before the driver was done."""
        give_up = time.monotonic() + PATIENCE_S
        while time.monotonic() < give_up:
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
        assert verify_run(str(self.output)) == []
        ids = pq.read_table(self.output / "answers")["id"].to_pylist()
        assert ids == [f"row-{i}" for i in range(self.rows)]


def kill(pids: list[int]) -> None:
    """SIGKILL to those of these processes that are still there."""
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
