"""Markers: what a watchdog leaves behind is what the next try reads."""

from pathlib import Path

import pytest

from pipeline.run_folder.markers import Marker, Markers
from pipeline.storage import filesystem as fs


@pytest.mark.parametrize(
    ("known", "slow"),
    [
        (None, {"7": "decode"}),
        (Marker(driver="d", deaths={"3": 1}), {"7": "decode"}),
        (Marker(driver="d", row=5, slow={"2": "fetch"}), {"2": "fetch", "7": "decode"}),
        (Marker(driver="d", slow={"7": "fetch"}), {"7": "decode"}),
    ],
)
def test_a_row_that_takes_too_long_is_added_to_what_is_known(tmp_path: Path, known, slow) -> None:
    markers = Markers(folder=str(tmp_path), driver="d")
    note = markers.slow("unit-00000001-preprocess", known)(7, "decode")
    fs.write_atomic(note.url, note.text.encode())
    found = markers.find("unit-00000001-preprocess")
    assert found == Marker(driver="d", deaths=known.deaths if known else {}, slow=slow)


def test_another_attempt_counts_from_nothing_and_its_own_deaths_count(tmp_path: Path) -> None:
    first = Markers(folder=str(tmp_path), driver="d")
    first.put("unit")
    assert first.of_attempt(0).find("unit") == first.find("unit")
    second = first.of_attempt(1)
    assert second.find("unit") is None
    second.put("unit", 3)
    found = second.find("unit")
    assert found is not None
    assert found.row == 3
