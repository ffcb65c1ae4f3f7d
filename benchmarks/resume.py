"""A large job that is half done: how long until it works on something new, and what its listing costs the driver.

python -m benchmarks.resume --rows 1000000
python -m benchmarks.resume --listing-rows 100000000

The first writes rows of small pictures and a run folder in which every second unit is done, starts the driver as a
process of its own, and waits for the first new unit. The second lists and cuts so many rows (files of 50,000, no
pictures) and says what the driver holds. The last line of stdout is one JSON object.
"""

import argparse
import json
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil

from benchmarks.million import load_echo, write_input
from benchmarks.random_model import write_model
from pipeline.job import run_job
from pipeline.plan import Plan, plan_job
from pipeline.run_folder.run import begin_run
from pipeline.run_folder.units import done_units, unit_path
from pipeline.sources.columns import Columns
from pipeline.sources.listing import Listing, cut, default_unit_rows, files_table
from pipeline.sources.parquet import Parquet
from pipeline.sources.reader import unit_reader
from pipeline.stages.preprocess import Preprocess
from pipeline.storage.filesystem import FileInfo
from schemas.job import JobSettings

_ROWS_A_FILE = 50_000
_GIVE_UP_S = 600


def plan_in(folder: Path) -> Plan:
    """The job that is resumed."""
    settings = JobSettings(
        input=(str(folder / "input"),), output=str(folder / "run"), model=str(folder / "model"), gpus=0
    )
    return plan_job("caption", settings, "Describe the image in more details.")


def measure_resume(folder: Path, num_rows: int) -> dict[str, object]:
    """Seconds from the start of the driver's process to the first new unit with its answers in place."""
    write_input(folder / "input", num_rows)
    (folder / "model").mkdir()
    write_model("tiny", folder / "model")
    plan = plan_in(folder)
    facts = Preprocess(plan.settings).preprocessor.facts
    begin_run(plan.settings.output, plan.describe() | {"model": str(facts)}, plan.listing.files)
    (folder / "run" / "units").mkdir()
    for unit in range(0, plan.listing.num_units, 2):
        Path(unit_path(plan.settings.output, unit)).touch()  # done by name; nobody reads it before the merge
    done = len(done_units(plan.settings.output))
    started = time.monotonic()
    driver = subprocess.Popen([sys.executable, "-m", "benchmarks.resume", "--driver", str(folder)])
    try:
        while len(os.listdir(folder / "run" / "units")) == done and time.monotonic() - started < _GIVE_UP_S:
            time.sleep(0.2)
        seconds = time.monotonic() - started
    finally:
        driver.send_signal(signal.SIGTERM)
        driver.wait()
    return {"rows": num_rows, "units_done": done, "first_new_unit_s": round(seconds, 1)}


def measure_listing(num_rows: int) -> dict[str, object]:
    """What the driver holds of an input of so many rows, and the seconds that cutting it takes."""
    process = psutil.Process()
    before, started = process.memory_info().rss, time.monotonic()
    num_files = -(-num_rows // _ROWS_A_FILE)
    infos = [
        FileInfo(url=f"s3://bucket/datasets/pictures/part-{i:08d}.parquet", size=10**9, version=f'"{i:032x}"')
        for i in range(num_files)
    ]
    files = files_table(infos, "s3://bucket/datasets/", np.full(num_files, _ROWS_A_FILE))
    unit_rows = default_unit_rows(num_rows)
    row_ranges = cut(files, num_rows, unit_rows)
    listing = Listing(
        source=Parquet(), columns=Columns(), files=files, row_ranges=row_ranges, unit_rows=unit_rows, num_rows=num_rows
    )
    todo = list(range(listing.num_units))
    reader = pickle.dumps(unit_reader(listing))
    return {
        "rows": num_rows,
        "files": num_files,
        "units": listing.num_units,
        "seconds": round(time.monotonic() - started, 1),
        "driver_mb": round((process.memory_info().rss - before) / 1e6),
        "pieces_mb": round(row_ranges.nbytes / 1e6),
        "sent_to_each_actor_mb": round(len(reader) / 1e6),
        "todo": len(todo),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--listing-rows", type=int)
    parser.add_argument("--driver", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.driver:
        run_job(plan_in(arguments.driver), load_echo)
        return
    if arguments.listing_rows:
        result = measure_listing(arguments.listing_rows)
    else:
        with tempfile.TemporaryDirectory() as folder:
            result = measure_resume(Path(folder), arguments.rows)
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
