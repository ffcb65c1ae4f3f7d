"""Saved datasets: the files that are one's own by its state, and what follows behind a stream."""

import json
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.sources.listing import list_input
from schemas.errors import Refused
from tests.listings import CONVENTION, requests_of
from tests.sources.samples import write_saved

TABLE = pa.table({"image": [b"1", b"2"]})
NAME = "data-00000-of-00001.arrow"


def saved(folder: Path, named: Sequence[str], there: Sequence[str]) -> None:
    """Write a dataset whose state names some files, and those that are there."""
    write_saved(folder / "train", TABLE)
    data = (folder / "train" / NAME).read_bytes()
    (folder / "train" / NAME).unlink()
    for name in there:
        (folder / "train" / name).write_bytes(data)
    state = {"_data_files": [{"filename": name} for name in named], "_indices_files": []}
    (folder / "train/state.json").write_text(json.dumps(state))


def test_files_that_a_dataset_does_not_name_are_left_out_and_counted(tmp_path: Path) -> None:
    saved(tmp_path, ["a.arrow"], ["a.arrow", "cache-1.arrow", "old.arrow"])
    listing = list_input([str(tmp_path)], CONVENTION)
    assert [one.id for one in requests_of(listing)] == ["train/a.arrow:0", "train/a.arrow:1"]
    assert "2 that the saved dataset beside them does not name (cache-1.arrow, old.arrow)" in listing.left_out


def test_a_dataset_that_has_lost_a_file_is_refused_by_its_name(tmp_path: Path) -> None:
    saved(tmp_path, ["a.arrow", "b.arrow"], ["a.arrow"])
    with pytest.raises(Refused, match=r"train must have the files that its state\.json names, 'b\.arrow' is not there"):
        list_input([str(tmp_path)], CONVENTION)
    assert list_input([f"{tmp_path}/train/a.arrow"], CONVENTION).num_rows == 2  # which was named


@pytest.mark.parametrize("state", [b"{}", b"[1]", b"not JSON", b'{"_data_files": 5}', b'{"_data_files": [7, {}]}'])
def test_a_state_that_names_no_files_leaves_none_out(tmp_path: Path, state: bytes) -> None:
    saved(tmp_path, [], ["a.arrow"])
    (tmp_path / "train/state.json").write_bytes(state)
    assert list_input([str(tmp_path)], CONVENTION).num_rows == 2


@pytest.mark.parametrize("more", [lambda data: data, lambda _: b"x"], ids=["another stream", "a byte"])
def test_a_stream_with_something_behind_its_end_is_refused(tmp_path: Path, more) -> None:
    saved(tmp_path, ["a.arrow"], ["a.arrow"])
    file = tmp_path / "train/a.arrow"
    file.write_bytes(file.read_bytes() + more(file.read_bytes()))
    with pytest.raises(Refused, match="something follows behind the stream's end"):
        list_input([str(tmp_path)], CONVENTION)
