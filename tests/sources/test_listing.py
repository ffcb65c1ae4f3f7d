from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from uuid import UUID

import numpy as np
import pyarrow as pa
import pytest

from pipeline.sources.columns import ColumnChoices
from pipeline.sources.kept import restore
from pipeline.sources.listing import cut, default_unit_rows, list_input
from pipeline.sources.parquet import Parquet
from pipeline.sources.reader import read_unit, unit_reader
from pipeline.storage import filesystem as fs
from schemas.request import REQUEST_SCHEMA, ImageRef, Request, table_to_requests
from tests.listings import CONVENTION, requests_of, write

pytest_plugins = ["tests.object_store"]


def test_an_image_bytes_column_gives_bytes_and_ids_of_file_and_row(root: str) -> None:
    write(fs.join(root, "in", "a.parquet"), pa.table({"image_bytes": [b"1", None, b""]}))
    assert requests_of(list_input([fs.join(root, "in")], CONVENTION)) == [
        Request(id="a.parquet:0", images=(ImageRef(data=b"1"),)),
        Request(id="a.parquet:1", images=(ImageRef(),)),
        Request(id="a.parquet:2", images=(ImageRef(),)),
    ]


def test_paths_are_relative_to_their_parquet_file_and_uris_are_taken_as_they_are(root: str) -> None:
    paths = ["x/1.jpg", "./2.jpg", "/abs/3.jpg", "s3://b/4.jpg", "https://h/5.jpg", "data:,6", "", None]
    write(fs.join(root, "d", "a.parquet"), pa.table({"path": paths}))
    found = [request.images[0].uri for request in requests_of(list_input([root], CONVENTION))]
    folder = fs.join(root, "d")
    assert found[:2] == [f"{folder}/x/1.jpg", f"{folder}/2.jpg"]
    assert found[2:] == [*paths[2:6], None, None]


def test_a_hugging_face_struct_gives_its_bytes_and_its_path_where_it_has_none(root: str) -> None:
    images = [{"bytes": b"1", "path": "1.jpg"}, {"bytes": None, "path": "2.jpg"}, None, {"bytes": b"", "path": None}]
    type = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    write(fs.join(root, "a.parquet"), pa.table({"image": pa.array(images, type)}))
    found = [request.images for request in requests_of(list_input([root], CONVENTION))]
    assert found == [
        (ImageRef(data=b"1"),),
        (ImageRef(uri=fs.join(root, "2.jpg")),),
        (ImageRef(),),
        (ImageRef(),),
    ]


def test_image_files_are_requests_named_by_their_path_below_the_input(root: str) -> None:
    for name in ("b.PNG", "cats/a.jpg", "_DSC/c.jpeg", "notes.txt"):
        fs.write_atomic(fs.join(root, "in", name), b"x")
    listing = list_input([fs.join(root, "in")], CONVENTION, unit_rows=2)
    assert listing.format == "images"
    assert requests_of(listing) == [
        Request(id=name, images=(ImageRef(uri=fs.join(root, "in", name)),))
        for name in ("_DSC/c.jpeg", "b.PNG", "cats/a.jpg")
    ]


@pytest.mark.parametrize(
    ("inputs", "ids"),
    [
        pytest.param(["x"], ["1.jpg", "2.jpg"], id="folder"),
        pytest.param(["x/1.jpg"], ["1.jpg"], id="file"),
        pytest.param(["x/*.jpg"], ["1.jpg", "2.jpg"], id="glob"),
        pytest.param(["*/1.jpg"], ["x/1.jpg", "y/1.jpg"], id="glob of folders"),
        pytest.param(["y", "x"], ["y/1.jpg", "x/1.jpg", "x/2.jpg"], id="two folders in the order given"),
        pytest.param(["x/2.jpg", "x", "x/*"], ["2.jpg", "1.jpg"], id="each file once"),
    ],
)
def test_ids_tell_the_files_of_all_inputs_apart(root: str, inputs: list[str], ids: list[str]) -> None:
    for name in ("x/1.jpg", "x/2.jpg", "y/1.jpg"):
        fs.write_atomic(fs.join(root, name), b"x")
    listing = list_input([fs.join(root, one) for one in inputs], CONVENTION)
    assert [request.id for request in requests_of(listing)] == ids


def test_an_id_column_is_text_and_a_row_without_one_is_named_by_file_and_row(tmp_path: Path) -> None:
    write(f"{tmp_path}/a.parquet", pa.table({"image": [b"1", b"2"], "question_id": pa.array([7, None], pa.int64())}))
    found = requests_of(list_input([str(tmp_path)], CONVENTION))
    assert [request.id for request in found] == ["7", "a.parquet:1"]


def test_a_prompt_column_is_the_rows_own_prompt(tmp_path: Path) -> None:
    write(f"{tmp_path}/a.parquet", pa.table({"image": [b"1", b"2"], "question": ["What?", None]}))
    listing = list_input([str(tmp_path)], CONVENTION)
    assert [request.prompt for request in requests_of(listing)] == ["What?", None]


def test_pandas_categories_and_large_types_are_read_like_plain_ones(tmp_path: Path) -> None:
    columns = {
        "url": pa.array(["s3://b/1"], pa.large_string()),
        "id": pa.array(["a"]).dictionary_encode(),
        "prompt": pa.array(["What?"]).dictionary_encode(),
    }
    write(f"{tmp_path}/a.parquet", pa.table(columns))
    assert requests_of(list_input([str(tmp_path)], CONVENTION)) == [
        Request(id="a", images=(ImageRef(uri="s3://b/1"),), prompt="What?")
    ]


KEPT = {
    "when": pa.array([datetime(2026, 1, 2, tzinfo=UTC), None], pa.timestamp("us", "UTC")),
    "tags": pa.array([["a", "b"], []], pa.list_(pa.string())),
    "kind": pa.array(["x", "y"]).dictionary_encode(),
    "box": pa.array([{"w": 1}, None], pa.struct([("w", pa.int16())])),
    "score": pa.array([0.5, None], pa.float32()),
}


def test_kept_columns_ride_along_with_their_own_types(root: str) -> None:
    for name in ("a", "b"):
        write(fs.join(root, f"{name}.parquet"), pa.table({"image": [b"1", b"2"], **KEPT}), row_group_size=1)
    travelling = read_unit_zero(root, ColumnChoices(keep=("tags", "kind", "at=when", "box", "score")))
    table = restore(travelling)
    assert table.column_names == [*REQUEST_SCHEMA.names, "keep:tags", "keep:kind", "keep:at", "keep:box", "keep:score"]
    for name, kept in (("keep:tags", "tags"), ("keep:kind", "kind"), ("keep:at", "when"), ("keep:box", "box")):
        assert table.column(name).type == KEPT[kept].type
        assert table.column(name).to_pylist() == KEPT[kept].to_pylist() * 2
    assert travelling.take([3, 0]).combine_chunks().num_rows == 2  # whatever their own types cannot do


def read_unit_zero(root: str, choices: ColumnChoices) -> pa.Table:
    listing = list_input([root], choices)
    return read_unit(listing.unit(0), listing.columns, listing.source)


def test_a_column_that_is_all_null_in_one_file_has_the_type_of_the_others(tmp_path: Path) -> None:
    write(f"{tmp_path}/a.parquet", pa.table({"image": [b"1"], "note": pa.nulls(1), "prompt": pa.nulls(1)}))
    write(f"{tmp_path}/b.parquet", pa.table({"image": [b"2"], "note": [1], "prompt": ["What?"]}))
    table = read_unit_zero(str(tmp_path), ColumnChoices(keep=("note",)))
    assert table.column("keep:note").to_pylist() == [None, 1]
    assert table.column("prompt").to_pylist() == [None, "What?"]


@pytest.mark.parametrize(
    "empty",
    [
        pytest.param(pa.table({}), id="no columns"),
        pytest.param(
            pa.table({"image": pa.array([], pa.float64()), "prompt": pa.array([], pa.int64())}), id="other types"
        ),
    ],
)
@pytest.mark.parametrize("name", ["0", "b", "z"])
def test_files_without_rows_decide_nothing(tmp_path: Path, empty: pa.Table, name: str) -> None:
    for one in "ac":
        write(f"{tmp_path}/{one}.parquet", pa.table({"image": [b"1"], "prompt": [f"{one}?"]}))
    write(f"{tmp_path}/{name}.parquet", empty)
    assert [request.prompt for request in requests_of(list_input([str(tmp_path)], CONVENTION))] == ["a?", "c?"]


def test_files_without_rows_in_the_job_decide_nothing(tmp_path: Path) -> None:
    write(f"{tmp_path}/a.parquet", pa.table({"image": [b"1"]}))
    write(f"{tmp_path}/b.parquet", pa.table({"image": [1], "prompt": [2]}))
    assert len(requests_of(list_input([str(tmp_path)], CONVENTION, limit=1))) == 1
    with pytest.raises(ValueError, match=r"'prompt' must be a string .*b\.parquet has int64"):
        list_input([str(tmp_path)], CONVENTION, limit=2)


IDS = {
    "decimal": (pa.array([Decimal(10), Decimal(-3)], pa.decimal128(20)), ["10", "-3"]),
    "uuid": (
        pa.ExtensionArray.from_storage(pa.uuid(), pa.array([UUID(int=1).bytes, None], pa.binary(16))),
        [str(UUID(int=1)), "a.parquet:1"],
    ),
    "date": (pa.array([date(2026, 1, 2), None]), ["2026-01-02", "a.parquet:1"]),
    "view": (pa.array(["a", ""], pa.string_view()), ["a", ""]),
    "bytes": (pa.array([b"a", b"b"]), ["a", "b"]),
    "dictionary": (pa.array([7, 8]).dictionary_encode(), ["7", "8"]),
}


@pytest.mark.parametrize("name", IDS)
def test_ids_of_any_plain_type_are_their_text(tmp_path: Path, name: str) -> None:
    column, ids = IDS[name]
    write(f"{tmp_path}/a.parquet", pa.table({"image": [b"1", b"2"], "id": column}))
    assert [request.id for request in requests_of(list_input([str(tmp_path)], CONVENTION))] == ids


@pytest.mark.parametrize("seed", range(8))
def test_every_row_is_in_exactly_one_unit_and_units_are_full(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows_of_files = rng.integers(0, 40, 6).tolist()
    images: list[bytes] = []
    for number, rows in enumerate([*rows_of_files, 3]):
        new = [f"{number}/{row}".encode() for row in range(rows)]
        write(f"{tmp_path}/{number}.parquet", pa.table({"image": pa.array(new, pa.binary())}), row_group_size=7)
        images += new
    unit_rows = int(rng.integers(1, 30))
    limit = int(rng.integers(1, len(images) + 9))
    listing = list_input([str(tmp_path)], CONVENTION, limit=limit, unit_rows=unit_rows)
    units = [unit_reader(listing)(unit) for unit in range(listing.num_units)]
    data = [request.images[0].data for request in table_to_requests(pa.concat_tables(units))]
    assert data == images[:limit]
    assert all(unit.num_rows == unit_rows for unit in units[:-1])
    ends = np.cumsum(listing.row_ranges.column("num_rows").to_numpy())
    assert listing.row_ranges.column("first_row").to_pylist() == [0, *ends[:-1].tolist()]


def test_the_cut_and_the_fingerprint_follow_from_the_files_alone(root: str) -> None:
    for name in ("a", "b"):
        write(fs.join(root, f"{name}.parquet"), pa.table({"image": [b"1"] * 20}))
    first, again = (list_input([root], CONVENTION) for _ in range(2))
    assert first.row_ranges.equals(again.row_ranges)
    assert first.fingerprint() == again.fingerprint()
    write(fs.join(root, "b.parquet"), pa.table({"image": [b"2"] * 20}))
    assert list_input([root], CONVENTION).fingerprint() != first.fingerprint()


def test_a_million_files_are_cut_in_seconds() -> None:
    names = [f"{number:07}.jpg" for number in range(1_000_000)]
    files = pa.table({"url": names, "name": names, "num_rows": np.ones(len(names), np.int64)})
    row_ranges = cut(files, len(names), 64)
    assert row_ranges.num_rows == 1_000_000
    assert row_ranges.column("unit")[-1].as_py() == 999_999 // 64


@pytest.mark.parametrize(
    ("num_rows", "unit_rows"), [(1, 8), (20, 8), (1000, 31), (10**6, 64), (2 * 10**6, 122), (10**9, 256)]
)
def test_units_are_small_in_short_jobs_and_bounded_in_long_ones(num_rows: int, unit_rows: int) -> None:
    assert default_unit_rows(num_rows) == unit_rows


@pytest.mark.parametrize(("row_bytes", "unit_rows"), [(2**20, 64), (8 * 2**20, 32), (100 * 2**20, 2), (2**31, 1)])
def test_units_of_large_rows_have_fewer(row_bytes: int, unit_rows: int) -> None:
    assert default_unit_rows(10**6, row_bytes) == unit_rows


@pytest.mark.parametrize(("row_bytes", "unit_rows"), [(150_000, 256), (600_000, 111), (2**20, 64), (8 * 2**20, 32)])
def test_units_of_a_long_job_grow_as_far_as_their_images_allow(row_bytes: int, unit_rows: int) -> None:
    assert default_unit_rows(10**8, row_bytes) == unit_rows


def test_the_table_with_the_largest_rows_decides(tmp_path: Path) -> None:
    large = np.random.default_rng(0).bytes(60 * 2**20)
    write(f"{tmp_path}/a.parquet", pa.table({"image": [b"1"] * 20}))
    write(f"{tmp_path}/b.parquet", pa.table({"image": [large] * 2}), use_dictionary=False)
    assert list_input([str(tmp_path)], CONVENTION).unit_rows == 4


def test_a_large_row_group_is_streamed_to_the_same_rows(tmp_path: Path) -> None:
    images = [b"%d" % row * 100 for row in range(100)]
    write(f"{tmp_path}/a.parquet", pa.table({"image": images}))
    listing = list_input([str(tmp_path)], CONVENTION, unit_rows=7)
    units = [
        read_unit(listing.unit(unit), listing.columns, Parquet(whole_read_bytes=1000))
        for unit in range(listing.num_units)
    ]
    assert [request.images[0].data for request in table_to_requests(pa.concat_tables(units))] == images


def test_what_the_writer_of_a_folder_keeps_for_itself_is_no_input(tmp_path: Path) -> None:
    for name in ("a.parquet", "_temporary/b.parquet", ".d.parquet"):
        write(f"{tmp_path}/{name}", pa.table({"image": [b"1"]}))
    assert list_input([str(tmp_path)], CONVENTION).num_rows == 1


def test_an_input_of_both_kinds_names_a_file_of_each(tmp_path: Path) -> None:
    write(f"{tmp_path}/a.parquet", pa.table({"image": [b"1"]}))
    fs.write_atomic(f"{tmp_path}/b.jpg", b"x")
    with pytest.raises(ValueError, match=r"not both images and parquet, got .*b\.jpg and .*a\.parquet"):
        list_input([str(tmp_path)], CONVENTION)


def test_an_input_without_files_says_what_was_looked_for(root: str) -> None:
    fs.write_atomic(fs.join(root, "in", "a.txt"), b"x")
    with pytest.raises(ValueError, match=r"--input .*in: it holds no Parquet, .* or TSV file; .*\.parquet.*\.jpg"):
        list_input([fs.join(root, "in")], CONVENTION)
    with pytest.raises(ValueError, match=r"--input .*none: there is nothing of that name$"):
        list_input([fs.join(root, "none")], CONVENTION)


def test_a_file_that_is_no_parquet_is_named(root: str) -> None:
    fs.write_atomic(fs.join(root, "a.parquet"), b"not Parquet at all")
    with pytest.raises(ValueError, match=r"a\.parquet must be a Parquet file, its footer cannot be read"):
        list_input([root], CONVENTION)


def test_an_input_without_rows_is_refused(tmp_path: Path) -> None:
    write(f"{tmp_path}/a.parquet", pa.table({"image": pa.array([], pa.binary())}))
    with pytest.raises(ValueError, match="must have at least one row"):
        list_input([str(tmp_path)], CONVENTION)


@pytest.mark.parametrize("choices", [ColumnChoices(id="a"), ColumnChoices(keep=("a",)), ColumnChoices(image="a")])
def test_image_files_have_no_columns_to_name(tmp_path: Path, choices: ColumnChoices) -> None:
    fs.write_atomic(f"{tmp_path}/b.jpg", b"x")
    with pytest.raises(
        ValueError, match=r"--.* a(: no such column; .*| needs a table as input: .*)label \(string\), text \(string\)"
    ):
        list_input([str(tmp_path)], choices)


@pytest.mark.parametrize(("limit", "unit_rows"), [(0, None), (None, 0)])
def test_counts_below_one_are_refused(limit: int | None, unit_rows: int | None) -> None:
    with pytest.raises(ValueError, match="must be at least 1, got 0"):
        list_input(["x"], CONVENTION, limit, unit_rows)
