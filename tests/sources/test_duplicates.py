"""Two rows of one id: found wherever they are, before a job starts."""

from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.sources.columns import ColumnChoices
from pipeline.sources.duplicates import find_duplicates, refuse_duplicate_ids
from pipeline.sources.listing import Listing, list_input
from pipeline.storage import filesystem as fs
from tests.listings import CONVENTION, write

pytest_plugins = ["tests.object_store"]


def listing_of(root: str, *files: list[str | None] | list[int], limit: int | None = None) -> Listing:
    """Files a.parquet, b.parquet, ... of rows with these ids."""
    for name, ids in zip("abc", files, strict=False):
        write(fs.join(root, f"{name}.parquet"), pa.table({"image": [b"1"] * len(ids), "id": ids}))
    return list_input([root], CONVENTION, limit=limit)


def test_an_id_of_two_rows_is_refused_with_both_places_and_what_to_do(root: str) -> None:
    listing = listing_of(root, ["one", "two"], ["three", "one", "one"])
    with pytest.raises(
        ValueError, match=r"2 rows have the ids of others: 'one' \(a\.parquet:0 and b\.parquet:1\); set --id"
    ):
        refuse_duplicate_ids(listing)


@pytest.mark.parametrize(
    ("files", "rows"),
    [
        pytest.param([["a", "b"], ["c"]], 0, id="none"),
        pytest.param([["a", "b", "a"]], 1, id="in one file"),
        pytest.param([[1, 2], [2, 1]], 2, id="numbers"),
        pytest.param([[None, "a.parquet:0"]], 1, id="a made one"),
        pytest.param([[None, None], [None]], 0, id="all made"),
        pytest.param([["", ""]], 1, id="empty"),
    ],
)
def test_rows_that_share_an_id_are_counted(tmp_path: Path, files: list[list[str | None]], rows: int) -> None:
    found = find_duplicates(listing_of(str(tmp_path), *files))
    assert (found.rows if found else 0) == rows


def test_only_rows_of_the_job_count(tmp_path: Path) -> None:
    assert find_duplicates(listing_of(str(tmp_path), ["a", "b"], ["c", "a"], limit=3)) is None
    assert find_duplicates(listing_of(str(tmp_path), ["a", "b"], ["c", "a"], limit=4)) is not None


def test_made_ids_always_differ(tmp_path: Path) -> None:
    listing_of(str(tmp_path), ["a", "a"])
    assert find_duplicates(list_input([str(tmp_path)], ColumnChoices(id=""))) is None


def test_a_file_that_cannot_be_read_is_left_to_the_job(tmp_path: Path) -> None:
    listing = listing_of(str(tmp_path), ["a", "a"], ["b"])
    (tmp_path / "b.parquet").unlink()
    found = find_duplicates(listing)
    assert found is not None
    assert str(found) == "1 row has the id of another: 'a' (a.parquet:0 and a.parquet:1)"
