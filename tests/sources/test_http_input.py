"""Tables and lists at URLs of the web, which a user names as input."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.http import HTTPFileSystem

from pipeline.sources.columns import ColumnChoices
from pipeline.sources.listing import list_input
from pipeline.sources.reader import unit_reader
from schemas.errors import Refused
from tests.web_server import serving_folder

URLS = ["https://far.test/a.jpg", "near/b.jpg"]


@pytest.fixture
def site(tmp_path: Path) -> Iterator[str]:
    pq.write_table(pa.table({"key": ["a", "b"], "url": URLS}), tmp_path / "in.parquet")
    (tmp_path / "in.txt").write_text("\n".join(URLS))
    with serving_folder(tmp_path) as url:
        yield url
        HTTPFileSystem.clear_instance_cache()


@pytest.mark.parametrize("name", ["in.parquet", "in.txt"])
def test_a_table_at_a_url_is_read_like_any_other(site: str, name: str) -> None:
    listing = list_input([f"{site}/{name}"], ColumnChoices())
    rows = unit_reader(listing)(0)
    assert [row[0]["uri"] for row in rows.column("images").to_pylist()] == [URLS[0], f"{site}/{URLS[1]}"]
    assert listing.files.column("version").to_pylist() != [""]


def test_what_is_not_at_a_url_is_refused(site: str) -> None:
    with pytest.raises(Refused, match=r"--input .*/none\.parquet: there is nothing of that name"):
        list_input([f"{site}/none.parquet"], ColumnChoices())
