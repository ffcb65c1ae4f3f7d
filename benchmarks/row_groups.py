"""What large row groups cost: all units of a Parquet file, each read by itself and each read on from the one before.

    python -m benchmarks.row_groups --rows 10000 --image-kb 60 --group-rows 10000
    python -m benchmarks.row_groups --rows 10000 --image-kb 60 --group-rows 100
    python -m benchmarks.row_groups --input s3://bucket/shard-000.parquet        a file that is there

Both ways take turns, in pairs. The last line of stdout is one JSON object; `read_mb` are what came from the file.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.sources.columns import ColumnChoices
from pipeline.sources.listing import Listing, list_input
from pipeline.sources.open_files import OpenFiles
from pipeline.sources.reader import unit_reader


def main() -> None:
    """Measure, and print what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", help="a Parquet file with an image column; without it one is written")
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--image-kb", type=int, default=60)
    parser.add_argument("--group-rows", type=int, default=10_000)
    parser.add_argument("--unit-rows", type=int, default=64)
    parser.add_argument("--units", type=int, default=40, help="read of the file, the first ones")
    parser.add_argument("--pairs", type=int, default=3)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        url = asked.input or str(write(Path(folder), asked.rows, asked.image_kb * 1024, asked.group_rows))
        listing = list_input([url], ColumnChoices(), unit_rows=asked.unit_rows)
        measured = [
            (measure(listing, asked.units, on=False), measure(listing, asked.units, on=True))
            for _ in range(asked.pairs)
        ]
    alone, on = (statistics.median(pair[way][0] for pair in measured) for way in (0, 1))
    ratio = statistics.median(first[0] / second[0] for first, second in measured)
    sys.stdout.write(
        json.dumps(
            {
                "units": min(asked.units, listing.num_units),
                "alone_s": round(alone, 3),
                "on_s": round(on, 3),
                "ratio": round(ratio, 2),
                "alone_read_mb": round(measured[0][0][1]),
                "on_read_mb": round(measured[0][1][1]),
            }
        )
        + "\n"
    )


def write(folder: Path, num_rows: int, image_bytes: int, group_rows: int) -> Path:
    """Write rows of bytes that no codec makes smaller, as those of JPEGs are."""
    data = np.random.default_rng(0).bytes(image_bytes + num_rows)
    images = [data[row : row + image_bytes] for row in range(num_rows)]
    table = pa.table({"id": [f"row-{row}" for row in range(num_rows)], "image": pa.array(images, pa.large_binary())})
    pq.write_table(table, folder / "images.parquet", row_group_size=group_rows, use_dictionary=["id"])
    return folder / "images.parquet"


def measure(listing: Listing, num_units: int, *, on: bool) -> tuple[float, float]:
    """Return the seconds that the first units take, and the MB that this process has read meanwhile."""
    files = OpenFiles()
    read = unit_reader(listing).using(files) if on else unit_reader(listing)
    began, before = time.perf_counter(), _num_read()
    for unit in range(min(num_units, listing.num_units)):
        read(unit)
    seconds, num_bytes = time.perf_counter() - began, _num_read() - before
    files.close()
    return seconds, num_bytes / 1e6


def _num_read() -> int:
    """Return the bytes that this process has read, of local files; 0 where the system does not count them."""
    try:
        lines = Path("/proc/self/io").read_text().splitlines()
    except OSError:
        return 0
    return int(lines[0].removeprefix("rchar: "))


if __name__ == "__main__":
    main()
