"""Memory of the driver and of the merge over many rows: flat, whatever their number.

python -m benchmarks.memory --rows 1000000

Writes the units of a run of so many answers, as workers would, then merges them, and samples this process's resident
memory. The last line of stdout is one JSON object: peak growth in MB of the listing of units and of the merge.
"""

import argparse
import json
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil
import pyarrow as pa

from pipeline.run_folder.merge import Units, finish_run
from pipeline.run_folder.units import done_units, write_unit
from schemas.answer import Answer, answers_to_table

UNIT_ROWS = 1024  # fewer, larger units than a job has: writing them is not what is measured
_TEXT = "A street with parked cars and two people who cross it at a light, seen from a window on the second floor "


class Peak:
    """The most that resident memory grew by while the block ran, in MB."""

    def __enter__(self) -> "Peak":
        self._process, self._done = psutil.Process(), threading.Event()
        self._start = self._most = self._process.memory_info().rss
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        self.growth_mb = round((self._most - self._start) / 1e6)

    def _watch(self) -> None:
        while not self._done.wait(0.05):
            self._most = max(self._most, self._process.memory_info().rss)


def write_units(folder: str, num_rows: int) -> Units:
    """The units of a run whose answers are all there."""

    def rows_of(unit: int) -> int:
        return min(UNIT_ROWS, num_rows - unit * UNIT_ROWS)

    units = Units(folder=folder, run="memory", num_units=-(-num_rows // UNIT_ROWS), answers_of=rows_of)
    for unit in range(units.num_units):
        write_unit(folder, units.run, unit, _answers(unit * UNIT_ROWS, rows_of(unit)))
    return units


def _answers(first: int, rows: int) -> pa.Table:
    answers = [
        Answer(id=f"row-{first + i}", prompt_id="prompt", prompt="Q?", status="ok", text=f"{_TEXT}{first + i}")
        for i in range(rows)
    ]
    return answers_to_table(answers)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=1_000_000)
    num_rows = parser.parse_args().rows
    with tempfile.TemporaryDirectory() as folder:
        units = write_units(str(Path(folder)), num_rows)
        with Peak() as listing:
            started = time.monotonic()
            done = done_units(units.folder)
            listing_s = time.monotonic() - started
        with Peak() as merge:
            started = time.monotonic()
            manifest = finish_run(units, "fingerprint", {})
            merge_s = time.monotonic() - started
    assert len(done) == units.num_units
    result = {
        "rows": manifest["rows"],
        "units": units.num_units,
        "listing_s": round(listing_s, 2),
        "listing_mb": listing.growth_mb,
        "merge_s": round(merge_s, 1),
        "merge_mb": merge.growth_mb,
    }
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
