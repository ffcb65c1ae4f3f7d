"""Every way into a store outlives a failure that passes, in storage itself; through a proxy that fails for real."""

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.sources.finding import find_files
from pipeline.storage import filesystem as fs

if TYPE_CHECKING:
    from tests.flaky_store import Proxy

pytest_plugins = ["tests.object_store", "tests.flaky_store"]

URL = "s3://flaky/d/a.parquet"


@pytest.fixture(autouse=True)
def _table(proxy: "Proxy") -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"id": ["a"]}), sink)
    fs.write_atomic(URL, sink.getvalue().to_pybytes())


def read_footer() -> object:
    with fs.open_url(URL) as file, pq.ParquetFile(file) as parquet:
        return parquet.metadata.num_rows


@pytest.mark.parametrize(
    ("step", "result"),
    [
        pytest.param(lambda: fs.read_bytes(URL, 4), b"PAR1", id="read"),
        pytest.param(lambda: fs.exists(URL), True, id="exists"),
        pytest.param(lambda: len(fs.list_folder("s3://flaky/d")), 1, id="list"),
        pytest.param(lambda: len(find_files("s3://flaky/*/*.parquet", (".parquet",)).files), 1, id="find"),
        pytest.param(lambda: fs.write_atomic("s3://flaky/d/b", b"x"), None, id="write"),
        pytest.param(lambda: fs.create_new("s3://flaky/d/c", b"x"), True, id="create"),
        pytest.param(lambda: fs.delete("s3://flaky/d"), None, id="delete"),
        pytest.param(read_footer, 1, id="footer"),
    ],
)
def test_a_store_that_fails_for_a_moment_is_asked_again(
    proxy: "Proxy", step: Callable[[], object], result: object
) -> None:
    proxy.failures = 1
    assert step() == result
    assert len(proxy.failed) == 1


def test_a_ranged_read_is_tried_again_where_it_began(proxy: "Proxy") -> None:
    with fs.open_url(URL) as file:
        file.seek(-4, os.SEEK_END)
        proxy.failures = 1
        assert file.read() == b"PAR1"
    assert proxy.failed == ["GET"]


def test_a_put_whose_answer_is_lost_finds_its_own_and_not_anothers(proxy: "Proxy") -> None:
    proxy.failures, proxy.command, proxy.reaches_store = 1, "PUT", True
    assert fs.create_new("s3://flaky/d/lock", b"mine")
    assert proxy.failed == ["PUT"]
    assert not fs.create_new("s3://flaky/d/lock", b"other")
    assert fs.read_bytes("s3://flaky/d/lock") == b"mine"
