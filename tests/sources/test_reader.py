"""Rows with several images, messages and values, as they come out of Parquet."""

import base64
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.sources.columns import ColumnChoices
from pipeline.sources.listing import list_input
from pipeline.sources.reader import unit_reader
from schemas.request import ImageRef, Request, table_to_requests

BYTES, TEXT = pa.binary(), pa.string()
STRUCT = pa.struct([("bytes", BYTES), ("path", TEXT)])
PART = pa.struct([("type", TEXT), ("text", TEXT)])


def read(folder: Path, table: pa.Table, **choices: object) -> list[Request]:
    """The requests of a file with these rows, the second half of them in a row group of its own."""
    pq.write_table(table, folder / "a.parquet", row_group_size=max(1, len(table) // 2))
    listing = list_input([str(folder)], ColumnChoices(**choices), unit_rows=len(table))
    return table_to_requests(unit_reader(listing)(0))


@pytest.mark.parametrize("outer", [pa.list_, pa.large_list])
def test_a_list_of_bytes_is_the_rows_images_in_order(tmp_path: Path, outer) -> None:
    images = pa.array([[b"1", b"2"], [], [b"3"], None, [b"4", None]], outer(BYTES))
    found = [request.images for request in read(tmp_path, pa.table({"images": images}))]
    one, two, three, four = (ImageRef(data=data) for data in (b"1", b"2", b"3", b"4"))
    assert found == [(one, two), (ImageRef(),), (three,), (ImageRef(),), (four, ImageRef())]


def test_a_list_of_paths_or_structs_is_read_like_single_ones(tmp_path: Path) -> None:
    paths = pa.array([["x.jpg", "s3://b/y.jpg"], None], pa.list_(TEXT))
    found = read(tmp_path, pa.table({"images": paths}))
    assert [image.uri for image in found[0].images] == [f"{tmp_path}/x.jpg", "s3://b/y.jpg"]
    structs = pa.array([[{"bytes": b"1", "path": "p"}, {"bytes": None, "path": "q.png"}], []], pa.list_(STRUCT))
    found = read(tmp_path, pa.table({"images": structs}))
    assert found[0].images == (ImageRef(data=b"1"), ImageRef(uri=f"{tmp_path}/q.png"))
    assert found[1].images == (ImageRef(),)


def test_a_list_of_fixed_size_is_a_list(tmp_path: Path) -> None:
    pairs = pa.array([[b"1", b"2"], [b"3", b"4"]], pa.list_(BYTES, 2))
    assert [len(request.images) for request in read(tmp_path, pa.table({"pair": pairs}))] == [2, 2]


NUMBERS = [[1, 2, 255], None, []]


@pytest.mark.parametrize(
    "images",
    [
        pytest.param(pa.array(NUMBERS, pa.list_(pa.uint8())), id="a column"),
        pytest.param(
            pa.array([{"bytes": n} for n in NUMBERS], pa.struct([("bytes", pa.list_(pa.uint8()))])), id="a field"
        ),
        pytest.param(pa.array([[n] for n in NUMBERS], pa.list_(pa.large_list(pa.uint8()))), id="a list of them"),
        pytest.param(pa.array([b"\x01\x02\xff", None, b""], pa.binary_view()), id="views"),
        pytest.param(pa.array([b"\x01\x02\xff", None, b""]).dictionary_encode(), id="a dictionary"),
        pytest.param(pa.array([[b"\x01\x02\xff"], [None], None], pa.list_view(pa.binary_view())), id="a view of views"),
    ],
)
def test_bytes_may_be_laid_out_in_any_way(tmp_path: Path, images: pa.Array) -> None:
    found = [request.images for request in read(tmp_path, pa.table({"image": images}))]
    assert found == [(ImageRef(data=b"\x01\x02\xff"),), (ImageRef(),), (ImageRef(),)]


def test_a_null_among_the_numbers_of_an_image_costs_its_row(tmp_path: Path) -> None:
    images = pa.array([[1], [1, None], [2], [3]], pa.list_(pa.uint8()))
    found = read(tmp_path, pa.table({"image": images, "id": list("abcd")}))
    assert [request.failure and request.failure.type for request in found] == [None, "InvalidValue", None, None]
    assert [request.id for request in found] == list("abcd")


def test_only_messages_can_do_without_an_image(tmp_path: Path) -> None:
    table = pa.table({"images": pa.array([[], [], None], pa.list_(BYTES)), "messages": ["[]", None, "[]"]})
    assert [request.images for request in read(tmp_path, table)] == [(), (ImageRef(),), (ImageRef(),)]


@pytest.mark.parametrize(
    "messages",
    [
        pytest.param(
            pa.array(
                [[{"from": "human", "value": "Hi"}]], pa.list_(pa.struct([("from", TEXT), ("value", pa.string_view())]))
            ),
            id="from",
        ),
        pytest.param(pa.array([[[("from", "human"), ("value", "Hi")]]], pa.list_(pa.map_(TEXT, TEXT))), id="maps"),
        pytest.param(pa.array([b'[{"from": "human", "value": "Hi"}]']), id="bytes"),
        pytest.param(
            pa.ExtensionArray.from_storage(pa.json_(), pa.array(['[{"from": "human", "value": "Hi"}]'])), id="JSON"
        ),
    ],
)
def test_messages_of_any_plain_type_are_json_text(tmp_path: Path, messages: pa.Array) -> None:
    (request,) = read(tmp_path, pa.table({"image": [b"1"], "conversations": messages}))
    assert json.loads(request.messages or "") == [{"from": "human", "value": "Hi"}]


def test_base64_is_no_path(tmp_path: Path) -> None:
    texts = [base64.b64encode(b"\xff\xd8\xff" + bytes(99)).decode(), "9j/x.jpg"]
    found = [request.images[0].uri for request in read(tmp_path, pa.table({"image": texts}))]
    assert found == [texts[0], f"{tmp_path}/9j/x.jpg"]


@pytest.mark.parametrize(
    ("content", "type"),
    [
        pytest.param("Why?", TEXT, id="text"),
        pytest.param([{"type": "image", "text": None}, {"type": "text", "text": "Why?"}], pa.list_(PART), id="parts"),
    ],
)
def test_message_structs_become_json_text_and_null_stays_null(tmp_path: Path, content: object, type) -> None:
    messages = [{"role": "user", "content": content}]
    column = pa.array([messages, None], pa.list_(pa.struct([("role", TEXT), ("content", type)])))
    first, second = read(tmp_path, pa.table({"image": [b"1", b"2"], "messages": column}))
    assert json.loads(first.messages or "") == messages
    assert second.messages is None


def test_json_text_is_passed_on_as_it_is_and_needs_no_image_column(tmp_path: Path) -> None:
    found = read(tmp_path, pa.table({"messages": ["[]", "{oops"]}))
    assert found == [
        Request(id="a.parquet:0", images=(), messages="[]"),
        Request(id="a.parquet:1", images=(), messages="{oops"),
    ]


def test_the_columns_that_prompts_name_come_as_text(tmp_path: Path) -> None:
    table = pa.table(
        {"image": [b"1", b"2"], "caption": ["a", None], "n": [1, 20], "x": [0.5, None], "y": [True, False]}
    )
    found = read(tmp_path, table, own_prompts=True, values=("caption", "n", "x", "y"))
    assert [request.values for request in found] == [
        {"caption": "a", "n": "1", "x": "0.5", "y": "true"},
        {"caption": None, "n": "20", "x": None, "y": "false"},
    ]
