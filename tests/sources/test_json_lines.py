"""JSON lines of which a reader could make more than one thing: they are error rows, and no row is another's."""

from pathlib import Path

import pytest

from pipeline.sources.columns import ColumnChoices
from pipeline.sources.listing import Listing, list_input
from tests.listings import CONVENTION, read_all, requests_of

GOOD = b'{"id": "z", "image": "z.jpg"}'


def listed(folder: Path, lines: list[bytes], choices: ColumnChoices = CONVENTION) -> Listing:
    (folder / "a.jsonl").write_bytes(b"\n".join(lines))
    return list_input([f"{folder}/a.jsonl"], choices)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        pytest.param(
            b'{"id": "a", "image": "1.jpg", "image": "2.jpg"}', "the field 'image' is there twice", id="field"
        ),
        pytest.param(
            b'{"id": "a", "image": "1.jpg", "x": {"role": 1, "role": 1}}', "'role' is there twice", id="field within"
        ),
        pytest.param(rb'{"id": "a", "image": "1.jpg", "\ud800": 1}', "surrogates not allowed", id="half a letter"),
        pytest.param(b'{"id": "a", "image": "1.jpg",}', "Expecting property name", id="a comma too many"),
        pytest.param(GOOD + GOOD, "Extra data", id="two objects"),
        pytest.param(b"\xef\xbb\xbf" + GOOD, "Expecting value", id="a mark of another file's beginning"),
        pytest.param(b'{"id": ' + b"9" * 5000 + b"}", "4300 digits", id="a number without end"),
        pytest.param(b"[" * 100_000, "recursion", id="no end of brackets"),
    ],
)
def test_a_line_that_can_be_read_in_two_ways_or_none_is_an_error_row(tmp_path: Path, line: bytes, said: str) -> None:
    bad, good = requests_of(listed(tmp_path, [GOOD, line]))[::-1]
    assert (bad.id, bad.failure and bad.failure.type) == ("a.jsonl:1", "InvalidJson")
    assert said in str(bad.failure)
    assert (good.id, good.failure) == ("z", None)


@pytest.mark.parametrize(("bad", "good"), [("NaN", '"x"'), ('{"x": -Infinity}', '{"x": 1}'), ("[NaN]", '["x"]')])
def test_no_number_is_not_written_out_as_a_text(tmp_path: Path, bad: str, good: str) -> None:
    lines = [f'{{"id": "{n}", "image": "1.jpg", "kept": {one}}}'.encode() for n, one in enumerate((bad, good))]
    found = requests_of(listed(tmp_path, lines, ColumnChoices(keep=("kept",))))
    assert [one.failure and (one.id, one.failure.type) for one in found] == [("0", "InvalidValue"), None]


def test_no_number_among_numbers_is_kept(tmp_path: Path) -> None:
    lines = [b'{"image": "1.jpg", "n": NaN}', b'{"image": "1.jpg", "n": 0.5}']
    column = read_all(listed(tmp_path, lines, ColumnChoices(keep=("n",)))).column("keep:n")
    assert str(column.to_pylist()) == "[nan, 0.5]"


def test_a_column_that_is_called_as_our_own_failures_is_a_column(tmp_path: Path) -> None:
    lines = [b'{"id": "a", "image": "1.jpg", "batch:failure": "x"}', GOOD]
    listing = listed(tmp_path, lines, ColumnChoices(keep=("batch:failure",)))
    assert [one.failure for one in requests_of(listing)] == [None, None]
    assert read_all(listing).column("keep:batch:failure").to_pylist() == ["x", None]


def test_the_bytes_of_an_image_in_json_are_base64(tmp_path: Path) -> None:
    cells = ['{"bytes": "AAEC", "path": null}', '{"bytes": "not base64", "path": "a.jpg"}', '{"path": "b.jpg"}']
    lines = [f'{{"id": "{number}", "image": {cell}}}'.encode() for number, cell in enumerate(cells)]
    first, second, third = requests_of(listed(tmp_path, lines))
    assert first.images[0].data == b"\0\1\2"
    assert (second.id, second.failure and second.failure.type) == ("1", "InvalidValue")
    assert third.images[0].uri == f"{tmp_path}/b.jpg"
