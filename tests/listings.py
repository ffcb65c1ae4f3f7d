"""Inputs written for tests, on a disk or in an object store, and what comes out when they are listed and read."""

import pickle
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.sources.columns import ColumnChoices
from pipeline.sources.listing import Listing
from pipeline.sources.open_files import OpenFiles
from pipeline.sources.reader import unit_reader
from pipeline.storage import filesystem as fs
from schemas.request import Request, table_to_requests

CONVENTION = ColumnChoices()


def write(url: str, table: pa.Table, **options: Any) -> str:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, **options)
    fs.write_atomic(url, sink.getvalue().to_pybytes())
    return url


def read_all(listing: Listing) -> pa.Table:
    """All units, each by itself; read on from one to the next as a worker does, they are the same."""
    reader = pickle.loads(pickle.dumps(unit_reader(listing)))  # as a worker gets it
    alone = pa.concat_tables([reader(unit) for unit in range(listing.num_units)])
    files = OpenFiles()
    reading_on = reader.using(files)
    together = pa.concat_tables([reading_on(unit) for unit in range(listing.num_units)])
    files.close()
    assert together.equals(alone) or repr(together.to_pylist()) == repr(alone.to_pylist())  # where there are NaNs
    return alone


def requests_of(listing: Listing) -> list[Request]:
    return table_to_requests(read_all(listing))
