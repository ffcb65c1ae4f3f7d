"""Files that stay open from unit to unit: the same rows as each unit by itself, and every byte read once."""

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pytest

from pipeline.sources.columns import ColumnChoices
from pipeline.sources.listing import Listing, list_input
from pipeline.sources.open_files import OpenFiles
from pipeline.sources.reader import UnitReader, unit_reader
from pipeline.storage import filesystem as fs
from tests.listings import CONVENTION, write

if TYPE_CHECKING:
    from tests.flaky_store import Proxy

pytest_plugins = ["tests.object_store", "tests.flaky_store"]

IMAGE_BYTES = 2_000


def images(num_rows: int, seed: int = 0) -> pa.Table:
    data = np.random.default_rng(seed).bytes(num_rows * IMAGE_BYTES)
    rows = [data[row * IMAGE_BYTES : (row + 1) * IMAGE_BYTES] for row in range(num_rows)]
    texts = pa.array([f"c{row % 3}" for row in range(num_rows)]).dictionary_encode()
    return pa.table({"id": [f"r{row}" for row in range(num_rows)], "image": rows, "caption": texts})


Readers = Callable[[Listing], tuple[UnitReader, UnitReader]]


@pytest.fixture
def readers() -> Iterator[Readers]:
    """Of a listing, what reads each unit by itself, and what reads on."""
    files = OpenFiles()
    yield lambda listing: (unit_reader(listing), unit_reader(listing).using(files))
    files.close()


@pytest.mark.parametrize("unit_rows", [1, 7, 64, 200])
@pytest.mark.parametrize("group_rows", [1, 30, 64, 500])
def test_units_are_the_same_rows_wherever_they_end(
    tmp_path: Path, unit_rows: int, group_rows: int, readers: Readers
) -> None:
    for number, num_rows in enumerate((100, 0, 33)):
        write(f"{tmp_path}/kind={number}/a.parquet", images(num_rows, number), row_group_size=group_rows)
    choices = ColumnChoices(keep=("caption", "kind"))
    alone, on = readers(listing := list_input([str(tmp_path)], choices, unit_rows=unit_rows))
    for unit in range(listing.num_units):
        assert on(unit).equals(alone(unit))


@pytest.mark.parametrize(
    "order",
    [
        pytest.param([3, 2, 1, 0], id="backwards"),
        pytest.param([0, 1, 1, 0, 2, 3, 1], id="again"),
        pytest.param([0, 3, 1, 2], id="ahead"),
        pytest.param([2, 9, 3, 8, 4, 7, 12, 0], id="two files"),
    ],
)
@pytest.mark.parametrize("group_rows", [15, 500])
def test_units_may_be_read_in_any_order(tmp_path: Path, order: list[int], group_rows: int, readers: Readers) -> None:
    for number in range(2):
        write(f"{tmp_path}/{number}.parquet", images(70, number), row_group_size=group_rows)
    alone, on = readers(list_input([str(tmp_path)], CONVENTION, unit_rows=10))
    for unit in order:
        assert on(unit).equals(alone(unit))


def test_a_row_group_of_many_units_is_read_once(proxy: "Proxy", readers: Readers) -> None:
    url = write("s3://flaky/a.parquet", images(500), compression="none", use_dictionary=False)
    listing = list_input([url], CONVENTION, unit_rows=10)
    bytes_of = []
    for read in readers(listing):
        before = proxy.num_sent
        for unit in range(listing.num_units):
            read(unit)
        bytes_of.append(proxy.num_sent - before)
    alone, on = bytes_of
    size = fs.list_folder("s3://flaky")[0].size
    assert size <= on < 1.2 * size
    assert alone > 10 * size


def test_a_store_that_throttles_has_the_same_rows(proxy: "Proxy", readers: Readers) -> None:
    url = write("s3://flaky/a.parquet", images(50), row_group_size=20)
    alone, on = readers(listing := list_input([url], CONVENTION, unit_rows=7))
    expected = [alone(unit) for unit in range(listing.num_units)]
    proxy.throttles = True
    assert [on(unit) for unit in range(listing.num_units)] == expected


REPLACED: dict[str, Callable[[Path], object]] = {
    "written anew": lambda path: write(str(path), images(50, seed=1)),
    "renamed into place": lambda path: (write(f"{path}.new", images(50, seed=1)), os.replace(f"{path}.new", path)),
    "cut short": lambda path: os.truncate(path, path.stat().st_size // 2),
    "gone": lambda path: path.unlink(),
    "other columns": lambda path: write(str(path), images(50).rename_columns(["id", "picture", "caption"])),
    "fewer rows": lambda path: write(str(path), images(25)),
    "damaged": lambda path: path.write_bytes(b"\xff" * 40_000 + path.read_bytes()[40_000:]),
}


@pytest.mark.parametrize("change", REPLACED.values(), ids=REPLACED)
def test_what_becomes_of_a_file_meanwhile_is_seen_by_the_next_unit(
    tmp_path: Path, change: Callable[[Path], object], readers: Readers
) -> None:
    path = Path(write(f"{tmp_path}/a.parquet", images(50)))
    alone, on = readers(list_input([str(path)], CONVENTION, unit_rows=10))
    on(0)
    on(1)
    times = path.stat()
    change(path)
    if path.exists():
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # as a copy that keeps its time
    for unit in (2, 3, 4, 0):
        assert on(unit).equals(alone(unit))


def test_an_object_that_was_replaced_is_seen_by_the_next_unit(bucket: str, readers: Readers) -> None:
    url = write(f"{bucket}/a.parquet", images(50))
    alone, on = readers(list_input([url], CONVENTION, unit_rows=10))
    on(0)
    write(url, images(50, seed=1))
    for unit in (1, 2):
        assert on(unit).equals(alone(unit))


def test_any_number_of_threads_read_on(tmp_path: Path, readers: Readers) -> None:
    for number in range(2):
        write(f"{tmp_path}/{number}.parquet", images(300, number), row_group_size=100)
    alone, on = readers(listing := list_input([str(tmp_path)], CONVENTION, unit_rows=8))
    found: dict[int, pa.Table] = {}
    left = iter(range(listing.num_units))
    taking = threading.Lock()

    def work() -> None:
        while True:
            with taking:
                unit = next(left, None)
            if unit is None:
                return
            found[unit] = on(unit)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(found[unit].equals(alone(unit)) for unit in range(listing.num_units))


def test_no_more_files_stay_open_than_are_read_at_once(tmp_path: Path) -> None:
    for number in range(9):
        write(f"{tmp_path}/{number}.parquet", images(20, number))
    listing = list_input([str(tmp_path)], CONVENTION, unit_rows=10)
    files = OpenFiles(most=2)
    on = unit_reader(listing).using(files)
    before = open_below(tmp_path)
    for unit in range(0, listing.num_units, 2):  # the first half of each
        on(unit)
    assert (before, open_below(tmp_path)) == ([], ["7.parquet", "8.parquet"])
    on(listing.num_units - 1)
    assert open_below(tmp_path) == ["7.parquet"]  # the other one is through
    files.close()
    assert open_below(tmp_path) == []


def open_below(folder: Path) -> list[str]:
    links = (Path("/proc/self/fd", name) for name in os.listdir("/proc/self/fd"))
    targets = (os.readlink(link) for link in links if link.is_symlink())
    return sorted(Path(target).name for target in targets if target.startswith(f"{folder}/"))
