"""Input that was listed and cannot be read any more: rows with a reason, never fewer rows."""

from pathlib import Path

import pyarrow as pa

from pipeline import storage
from pipeline.columns import ColumnChoices
from pipeline.sources import Listing, list_input
from tests.listings import CONVENTION, read_all, requests_of, write

pytest_plugins = ["tests.object_store"]


def failures_of(listing: Listing) -> list[tuple[str, str] | None]:
    """The id and type of failure of each row, None where it could be read."""
    return [request.failure and (request.id, request.failure.type) for request in requests_of(listing)]


def damage(url: str) -> None:
    """Overwrite the first page of the file."""
    data = bytearray(Path(url).read_bytes())
    data[4:20] = b"\xff" * 16
    Path(url).write_bytes(data)


def test_rows_that_a_file_lost_since_it_was_listed_are_failed_rows(tmp_path: Path) -> None:
    url = write(f"{tmp_path}/a.parquet", pa.table({"image": [b"1"] * 20}))
    listing = list_input([url], CONVENTION)
    write(url, pa.table({"image": [b"1"] * 9}))
    failed = requests_of(listing)[8]
    assert failures_of(listing) == [None] * 8 + [(f"a.parquet:{row}", "BrokenFile") for row in range(8, 20)]
    assert failed.failure is not None
    assert "must have at least 16 rows as when listed, it has 9" in failed.failure.message


def test_a_damaged_row_group_fails_its_own_rows_under_their_ids(tmp_path: Path) -> None:
    rows = pa.table({"image": [b"1234"] * 20, "id": [f"i{row}" for row in range(20)]})
    url = write(f"{tmp_path}/a.parquet", rows, use_dictionary=False, row_group_size=5)
    listing = list_input([url], CONVENTION)
    damage(url)
    assert failures_of(listing) == [(f"i{row}", "BrokenFile") for row in range(5)] + [None] * 15
    assert "cannot be read" in str(requests_of(listing)[0].failure)


def test_rows_whose_ids_cannot_be_read_either_are_called_after_their_place(tmp_path: Path) -> None:
    rows = pa.table({"id": [f"i{row}" for row in range(10)], "image": [b"1234"] * 10})
    url = write(f"{tmp_path}/a.parquet", rows, use_dictionary=False, row_group_size=5)
    listing = list_input([url], CONVENTION)
    damage(url)
    assert failures_of(listing) == [(f"a.parquet:{row}", "BrokenFile") for row in range(5)] + [None] * 5


def test_rows_of_a_file_that_is_gone_are_failed_rows_with_all_columns(root: str) -> None:
    for name in ("a", "b"):
        write(f"{root}/{name}.parquet", pa.table({"image": [b"1"] * 3, "n": [1, 2, 3]}))
    listing = list_input([root], ColumnChoices(keep=("n",)), unit_rows=4)
    storage.delete(f"{root}/b.parquet")
    assert failures_of(listing) == [None] * 3 + [(f"b.parquet:{row}", "FileNotFound") for row in range(3)]
    assert read_all(listing).column("keep:n").to_pylist() == [1, 2, 3, None, None, None]


def test_rows_of_a_file_that_became_another_one_are_failed_rows(tmp_path: Path) -> None:
    url = write(f"{tmp_path}/a.parquet", pa.table({"image": [b"1"] * 2, "prompt": ["a", "b"]}))
    listing = list_input([url], CONVENTION)
    for other in ({"image": [b"1"] * 2}, {"image": [b"1"] * 2, "prompt": [[1], [2]]}):
        write(url, pa.table(other))
        assert failures_of(listing) == [("a.parquet:0", "BrokenFile"), ("a.parquet:1", "BrokenFile")]


def test_text_that_is_no_utf8_fails_its_rows(tmp_path: Path) -> None:
    texts = pa.array([b"one", b"\xff\xfe", b"two"], pa.binary()).view(pa.string())
    url = write(f"{tmp_path}/a.parquet", pa.table({"image": [b"1"] * 3, "prompt": texts}))
    assert failures_of(list_input([url], CONVENTION)) == [(f"a.parquet:{row}", "BrokenFile") for row in range(3)]
