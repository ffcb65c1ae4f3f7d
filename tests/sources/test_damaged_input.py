"""Input that was listed and cannot be read any more: rows with a reason, never fewer rows."""

from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.sources.columns import ColumnChoices
from pipeline.sources.listing import Listing, list_input
from pipeline.storage import filesystem as fs
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


def test_rows_whose_ids_cannot_be_read_either_are_called_after_file_and_row(tmp_path: Path) -> None:
    rows = pa.table({"id": [f"i{row}" for row in range(10)], "image": [b"1234"] * 10})
    url = write(f"{tmp_path}/a.parquet", rows, use_dictionary=False, row_group_size=5)
    listing = list_input([url], CONVENTION)
    damage(url)
    assert failures_of(listing) == [(f"a.parquet:{row}", "BrokenFile") for row in range(5)] + [None] * 5


def test_rows_of_a_file_that_is_gone_are_failed_rows_with_all_columns(root: str) -> None:
    for name in ("a", "b"):
        write(f"{root}/{name}.parquet", pa.table({"image": [b"1"] * 3, "n": [1, 2, 3]}))
    listing = list_input([root], ColumnChoices(keep=("n",)), unit_rows=4)
    fs.delete(f"{root}/b.parquet")
    assert failures_of(listing) == [None] * 3 + [(f"b.parquet:{row}", "FileNotFound") for row in range(3)]
    assert read_all(listing).column("keep:n").to_pylist() == [1, 2, 3, None, None, None]


def test_rows_of_a_file_that_became_another_one_are_failed_rows(tmp_path: Path) -> None:
    url = write(f"{tmp_path}/a.parquet", pa.table({"image": [b"1"] * 2, "prompt": ["a", "b"]}))
    listing = list_input([url], CONVENTION)
    for other in ({"image": [b"1"] * 2}, {"image": [b"1"] * 2, "prompt": [[1], [2]]}):
        write(url, pa.table(other))
        assert failures_of(listing) == [("a.parquet:0", "BrokenFile"), ("a.parquet:1", "BrokenFile")]


def texts(*values: bytes | None) -> pa.Array:
    """Strings of these bytes, whether they are UTF-8 or not."""
    return pa.array(values, pa.binary()).view(pa.string())


BAD = b"caf\xe9"
COLUMNS = {
    "prompt": texts(b"one", b"two", BAD, b"four"),
    "note": texts(b"one", b"two", BAD, b"four"),
    "image": pa.StructArray.from_arrays([pa.array([b"1"] * 4), texts(b"a", b"b", BAD, b"d")], names=["bytes", "path"]),
    "messages": texts(b"[]", b"[]", BAD, b"[]"),
    "conversations": pa.ListArray.from_arrays(
        pa.array(range(5), pa.int32()),
        pa.StructArray.from_arrays([pa.array(["user"] * 4), texts(b"a", b"b", BAD, b"d")], names=["role", "content"]),
    ),
}


@pytest.mark.parametrize("name", COLUMNS)
def test_a_text_that_is_none_costs_its_row_alone(tmp_path: Path, name: str) -> None:
    columns = {"id": list("abcd"), "image": [b"1"] * 4, name: COLUMNS[name]}
    url = write(f"{tmp_path}/a.parquet", pa.table(columns))
    listing = list_input([url], ColumnChoices(keep=("note",) if name == "note" else ()))
    assert failures_of(listing) == [None, None, ("c", "InvalidText"), None]
    message = str(requests_of(listing)[2].failure)
    assert f"column '{name}' in row 2 of {url} must be UTF-8 text: " in message


def test_rows_whose_ids_are_no_text_are_called_after_file_and_row(tmp_path: Path) -> None:
    ids = texts(BAD, b"b", BAD, b"d", BAD)
    url = write(
        f"{tmp_path}/a.parquet", pa.table({"image": [b"1"] * 5, "id": ids, "prompt": texts(*[b"x"] * 3, BAD, BAD)})
    )
    listing = list_input([url], CONVENTION)
    made = [("a.parquet:0", "InvalidText"), None, ("a.parquet:2", "InvalidText")]
    assert failures_of(listing) == [*made, ("d", "InvalidText"), ("a.parquet:4", "InvalidText")]
    assert [request.id for request in requests_of(listing)][1] == "b"


@pytest.mark.parametrize("keep", [(), ("note", "when")])
def test_a_text_that_is_none_in_a_dictionary_costs_its_row_alone(tmp_path: Path, keep: tuple[str, ...]) -> None:
    prompts = pa.DictionaryArray.from_arrays(pa.array([0, 0, 1, 0], pa.int8()), texts(b"one", BAD))
    when = pa.array([1, 2, 3, 4], pa.timestamp("us", "Europe/Berlin"))
    rows = pa.table({"id": list("abcd"), "image": [b"1"] * 4, "prompt": prompts, "note": prompts, "when": when})
    url = write(f"{tmp_path}/a.parquet", rows, row_group_size=4, use_dictionary=False)
    listing = list_input([url], ColumnChoices(keep=keep))
    assert failures_of(listing) == [None, None, ("c", "InvalidText"), None]
    assert [request.prompt for request in requests_of(listing)] == ["one", "one", None, "one"]


def nested(how: str, texts: pa.Array) -> pa.Array:
    """Each of four texts inside of something."""
    one_each = pa.array(range(5), pa.int32())
    beside = pa.array([1, 2, 3, 4], pa.timestamp("us", "Europe/Berlin"))
    match how:
        case "struct":
            return pa.StructArray.from_arrays([texts, beside], names=["text", "when"])
        case "list":
            return pa.ListArray.from_arrays(one_each, texts)
        case "map":
            return pa.MapArray.from_arrays(one_each, pa.array(["key"] * 4), texts)
        case _:
            return nested("list", nested("struct", texts))


@pytest.mark.parametrize("how", ["struct", "list", "map", "list of structs"])
def test_a_text_that_is_none_in_a_nested_dictionary_costs_its_row_alone(tmp_path: Path, how: str) -> None:
    notes = pa.DictionaryArray.from_arrays(pa.array([0, 0, 1, 0], pa.int8()), texts(b"one", BAD))
    good = pa.DictionaryArray.from_arrays(pa.array([0] * 4, pa.int8()), texts(b"one"))
    rows = pa.table({"id": list("abcd"), "image": [b"1"] * 4, "note": nested(how, notes), "other": nested(how, good)})
    url = write(f"{tmp_path}/a.parquet", rows, row_group_size=4)
    listing = list_input([url], ColumnChoices(keep=("note", "other")))
    assert failures_of(listing) == [None, None, ("c", "InvalidText"), None]
    found, expected = read_all(listing), rows["other"].to_pylist()
    assert found["keep:other"].to_pylist() == expected
    assert found["keep:note"].to_pylist() == [*expected[:2], None, expected[3]]


def test_a_conversation_of_dictionaries_with_a_text_that_is_none_costs_its_row_alone(tmp_path: Path) -> None:
    said = pa.DictionaryArray.from_arrays(pa.array([0, 0, 1, 0], pa.int8()), texts(b"What?", BAD))
    roles = pa.array(["user"] * 4).dictionary_encode()
    turns = pa.StructArray.from_arrays([roles, said], names=["role", "content"])
    rows = pa.table(
        {"id": list("abcd"), "image": [b"1"] * 4, "messages": pa.ListArray.from_arrays(pa.array(range(5)), turns)}
    )
    listing = list_input([write(f"{tmp_path}/a.parquet", rows, row_group_size=4)], CONVENTION)
    assert failures_of(listing) == [None, None, ("c", "InvalidText"), None]
    assert requests_of(listing)[3].messages == '[{"role": "user", "content": "What?"}]'


def test_a_row_with_a_bad_value_keeps_the_others(tmp_path: Path) -> None:
    rows = pa.table({"image": [b"1"] * 2, "note": texts(b"one", BAD), "n": [1, 2]})
    url = write(f"{tmp_path}/a.parquet", rows)
    table = read_all(list_input([url], ColumnChoices(keep=("note", "n"))))
    assert table.column("keep:note").to_pylist() == ["one", None]
    assert table.column("keep:n").to_pylist() == [1, 2]


def test_many_bad_texts_are_found_in_one_reading(tmp_path: Path) -> None:
    rows = 4096
    prompts = texts(*[BAD if row % 2 else b"good" for row in range(rows)])
    url = write(f"{tmp_path}/a.parquet", pa.table({"image": [b"1"] * rows, "prompt": prompts}))
    failed = [request.failure is not None for request in requests_of(list_input([url], CONVENTION, unit_rows=rows))]
    assert failed == [False, True] * (rows // 2)
