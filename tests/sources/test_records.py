"""Rows that are found by their bytes: JSON lines and lists, CSV, lists of paths, archives; what a broken one costs."""

import base64
import gzip
import json
import tarfile
import zlib
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipeline.sources.columns import ColumnChoices
from pipeline.sources.discover import expand_braces
from pipeline.sources.duplicates import refuse_duplicate_ids
from pipeline.sources.index_store import keep_index, read_index
from pipeline.sources.kept import restore
from pipeline.sources.listing import Listing, list_input
from pipeline.sources.named_images import images_of
from pipeline.sources.records import Records
from pipeline.sources.source import ranges_of
from pipeline.sources.streams import opened
from pipeline.sources.webdataset import WebDataset
from pipeline.storage import filesystem as fs
from schemas.errors import Refused
from schemas.request import Request
from tests.inputs import picture
from tests.listings import CONVENTION, read_all, requests_of, write
from tests.sources.samples import json_lines, request, tar, write_saved

pytest_plugins = ["tests.object_store"]


def listed(
    folder: Path | str, name: str, data: bytes | str, choices: ColumnChoices = CONVENTION, **how: int
) -> Listing:
    """The listing of one file."""
    url = fs.join(str(folder), name)
    fs.write_atomic(url, data.encode() if isinstance(data, str) else data)
    return list_input([url], choices, **how)


def failures(requests: list[Request]) -> list[tuple[str, str] | None]:
    """The id and the kind of failure of each row."""
    return [one.failure and (one.id, one.failure.type) for one in requests]


ROWS = [{"id": f"{n:03}", "image": f"{n}.jpg", "prompt": "x" * (n * 7 % 50)} for n in range(100)]
TEXTS = {
    "a.jsonl": json_lines(ROWS),
    "crlf.jsonl": json_lines(ROWS).replace(b"\n", b"\r\n \r\n"),
    "bom.ndjson": b"\xef\xbb\xbf" + json_lines(ROWS).rstrip(b"\n"),
    "a.jsonl.gz": gzip.compress(json_lines(ROWS[:50])) + gzip.compress(json_lines(ROWS[50:])),
    "a.json": json.dumps(ROWS, indent=3).encode(),
    "lines.json": json_lines(ROWS),
    "a.csv": "id,image,prompt\n" + "".join(f'{r["id"]},{r["image"]},"{r["prompt"]}"\n' for r in ROWS),
    "a.tsv.gz": gzip.compress(("id\timage\tprompt\n" + "".join("\t".join(r.values()) + "\n" for r in ROWS)).encode()),
}


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("unit_rows", [1, 7, 64])
def test_units_of_any_size_have_the_same_rows(tmp_path: Path, name: str, unit_rows: int) -> None:
    found = requests_of(listed(tmp_path, name, TEXTS[name], unit_rows=unit_rows))
    assert [(one.id, one.images[0].uri, one.prompt or "") for one in found] == [
        (row["id"], f"{tmp_path}/{row['image']}", row["prompt"]) for row in ROWS
    ]


def test_a_store_gives_the_same_rows(bucket: str) -> None:
    found = requests_of(listed(bucket, "a.jsonl", TEXTS["a.jsonl"], unit_rows=60))
    assert [one.id for one in found] == [row["id"] for row in ROWS]


def test_a_limit_stops_the_looking(tmp_path: Path) -> None:
    data = json_lines(ROWS[:5]) + b"\xff not JSON\n" * 5
    assert [one.id for one in requests_of(listed(tmp_path, "a.jsonl", data, limit=5))] == [f"{n:03}" for n in range(5)]


def test_a_broken_line_costs_its_row_and_says_which_it_is(tmp_path: Path) -> None:
    lines = [b'{"id": "a", "image": "1.jpg"}', b"", b"{oops", b"[1]", b'{"id": "\xe9"}', b'{"id": "b", "image": null}']
    found = requests_of(listed(tmp_path, "a.jsonl", b"\n".join(lines), unit_rows=2))
    kinds = ["InvalidJson", "InvalidJson", "InvalidText"]
    assert failures(found) == [None, *((f"a.jsonl:{row}", kind) for row, kind in enumerate(kinds, start=1)), None]
    assert f"line 3 of {tmp_path}/a.jsonl must be a JSON object: " in str(found[1].failure)


def test_a_value_of_another_type_costs_its_row_which_keeps_its_id(tmp_path: Path) -> None:
    rows = [{"id": "a", "image": "1.jpg", "n": 1}] * 300 + [{"id": "z", "image": "1.jpg", "n": "x"}]
    listing = listed(tmp_path, "a.jsonl", json_lines(rows), ColumnChoices(keep=("n",)))
    assert failures(requests_of(listing))[-2:] == [None, ("z", "InvalidValue")]
    assert restore(read_all(listing)).schema.field("keep:n").type == pa.int64()


def test_a_question_that_only_later_rows_have_is_not_passed_over(tmp_path: Path) -> None:
    rows = [{"image": "1.jpg"}] * 300 + [{"image": "1.jpg", "question": "Why?"}]
    found = requests_of(listed(tmp_path, "a.jsonl", json_lines(rows)))
    assert failures(found)[-2:] == [None, ("a.jsonl:300", "UnexpectedColumn")]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        pytest.param(
            "a.json", '{"images": [\n1]}', "must be a list of objects, or have an object in every line", id="one"
        ),
        pytest.param("a.json", '[{"image": "1.jpg"}, {"image"', "is no JSON", id="a torn list"),
        pytest.param("a.json", '[{"image": "1.jpg"}', "the list must end with ]", id="a list without its end"),
        pytest.param("a.jsonl", "hello\nyou\n", "none of its first 2 rows can be read", id="no JSON"),
        pytest.param("a.csv", "", "it must have a header", id="an empty table"),
        pytest.param("a.csv", "id,id\n1,2\n", "more than one column 'id'", id="a name twice"),
        pytest.param("a.csv", "a.jpg,cat\nb.jpg,dog\n", "no image column found", id="no header"),
        pytest.param("a.tar", b"x" * 5000, "is damaged at byte 0", id="no archive"),
        pytest.param("a.jsonl.gz", gzip.compress(b"{}\n" * 9)[:-9], "cannot be read as JSON lines", id="a torn gzip"),
    ],
)
def test_a_file_without_rows_to_tell_apart_is_refused_by_name(
    tmp_path: Path, name: str, data: bytes | str, message: str
) -> None:
    with pytest.raises(Refused) as refused:
        listed(tmp_path, name, data)
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("name", "data", "why"),
    [
        pytest.param("a.json", '[{"image": "a.jpg"}]\n[{"image": "b.jpg"}]', "something follows", id="two lists"),
        pytest.param("a.json", f'[{{"image": "a.jpg"}}]{" " * 2**20} x', "something follows", id="far behind"),
        pytest.param("a.csv", 'id,image\n1,a.jpg\n2,"b.jpg\n3,c.jpg\n', "in the row of line 3", id="an open quote"),
        pytest.param("a.tsv", 'id\timage\n1\t"a.jpg', "in the row of line 2", id="an open quote at the end"),
    ],
)
def test_a_file_of_which_rows_would_be_passed_over_is_refused(tmp_path: Path, name: str, data: str, why: str) -> None:
    with pytest.raises(Refused, match=why):
        listed(tmp_path, name, data)


def test_ids_that_are_there_twice_are_refused_in_every_format(tmp_path: Path) -> None:
    listing = listed(tmp_path, "a.txt", "a.jpg\nb.jpg\n\na.jpg\n", unit_rows=1)
    with pytest.raises(Refused, match=r"1 row has the id of another: 'a.jpg' \(a.txt:0 and a.txt:2\)"):
        refuse_duplicate_ids(listing)


def test_several_images_and_none_are_told_apart(tmp_path: Path) -> None:
    rows = [{"image": ["1.jpg", "2.jpg"]}, {"image": "3.jpg"}, {"image": []}, {}]
    found = requests_of(listed(tmp_path, "a.jsonl", json_lines([{"id": i, **row} for i, row in enumerate(rows)])))
    assert [[image.uri and Path(image.uri).name for image in one.images] for one in found] == [
        ["1.jpg", "2.jpg"],
        ["3.jpg"],
        [None],
        [None],
    ]


def test_rows_of_a_table_that_do_not_fit_its_header_cost_themselves(tmp_path: Path) -> None:
    found = requests_of(listed(tmp_path, "a.csv", 'id,image\n007,a.jpg\n8\n9,"b\n.jpg"\n', unit_rows=1))
    assert failures(found) == [None, ("a.csv:1", "InvalidRow"), None]
    assert [one.id for one in found] == ["007", "a.csv:1", "9"]
    assert "line 3 of" in str(found[1].failure)


SAMPLES = [("k1.jpg", b"1"), ("k1.json", b'{"uid": "u1", "n": 3}'), ("k2.a.png", b"2"), ("k2.b.jpg", b"3")]


def test_a_sample_is_the_members_of_one_key(tmp_path: Path) -> None:
    members = [*SAMPLES, ("./k3.txt", b"no image"), ("__meta__", b""), ("k4.jpg", b"4"), ("k4.json", b"{oops")]
    found = requests_of(listed(tmp_path, "s.tar", tar(members), unit_rows=3))
    assert [(one.id, [image.data and bytes(image.data) for image in one.images]) for one in found[:3]] == [
        ("k1", [b"1"]),
        ("k2", [b"2", b"3"]),
        ("k3", [None]),
    ]
    assert failures(found)[3] == ("k4", "InvalidJson")  # a question may have been in it
    choices = ColumnChoices(keep=("uid", "n"), own_prompts=True)
    listing = listed(tmp_path, "s.tar.gz", zlib_gzip(tar(members)), choices, unit_rows=3)
    assert failures(requests_of(listing))[3] == ("k4", "InvalidJson")
    assert read_all(listing).column("keep:n").to_pylist() == [3, None, None, None]


def zlib_gzip(data: bytes) -> bytes:
    """A gzip file without a time in it."""
    return gzip.compress(data, zlib.Z_BEST_SPEED, mtime=0)


@pytest.mark.parametrize("damage", [slice(512 * 4, None), slice(512 * 4 + 10, 512 * 4 + 60)])
def test_a_damaged_archive_is_refused_and_not_taken_for_a_shorter_one(tmp_path: Path, damage: slice) -> None:
    data = bytearray(tar([*SAMPLES, ("k5.jpg", b"5" * 5000)]))
    data[damage] = b"" if damage.stop is None else b"\xff" * (damage.stop - damage.start)
    with pytest.raises(Refused, match=r"s\.tar cannot be read as WebDataset: the archive"):
        listed(tmp_path, "s.tar", bytes(data) + data[:512])


def header(size: bytes, kind: bytes = tarfile.REGTYPE) -> bytes:
    """A header of a member with this in its field of the size, and the right checksum."""
    block = bytearray(tarfile.TarInfo("a.jpg").tobuf(tarfile.USTAR_FORMAT))
    block[124:136], block[156:157], block[148:156] = size, kind, b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def pax(**headers: str) -> bytes:
    member = tarfile.TarInfo("a.jpg")
    member.pax_headers = headers
    return member.tobuf(tarfile.PAX_FORMAT)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        pytest.param(header(b"\xff" * 12), "must have 0 to .* bytes, a.jpg has -1", id="negative"),
        pytest.param(header(b"\x80" + b"\x7f" * 11), "must have 0 to 1,099,511,627,776 bytes", id="no end"),
        pytest.param(pax(size="-1024"), "a.jpg has -1,024", id="negative by an extended header"),
        pytest.param(pax(size="99999999999999999"), "must have 0 to", id="no end by an extended header"),
        pytest.param(pax(**{"GNU.sparse.map": "abc"}), "no number where one must be", id="a sparse map"),
        pytest.param(header(b"77777777777\0", b"x"), "must have 0 to 1,048,576 bytes", id="a long extended header"),
        pytest.param(header(b"77777777777\0", b"L"), "must have 0 to 1,048,576 bytes", id="a long name"),
        pytest.param(tar([("1.jpg", b"")]) * 2, "something follows behind the archive's end", id="two in one"),
    ],
)
def test_an_archive_that_would_be_read_for_ever_or_in_part_is_refused(tmp_path: Path, data: bytes, why: str) -> None:
    with pytest.raises(Refused, match=why):
        listed(tmp_path, "a.tar", data + bytes(1024))


def test_a_range_too_large_for_memory_is_read_like_others(tmp_path: Path) -> None:
    members = {f"{n}.jpg": picture(n) for n in range(4)}
    listing = listed(tmp_path, "a.tar", tar([*members.items()]))
    whole = read_all(listing)
    apart = WebDataset(at_once_bytes=0)
    found = [rows for one in ranges_of(listing.unit(0)) for rows in Records(apart).read([one], listing.columns)]
    assert [rows.batch["images"].to_pylist() for rows in found] == [[[one] for one in members.values()]]
    assert [one["data"] for (one,) in whole["images"].to_pylist()] == list(members.values())


def test_rows_of_an_archive_that_was_cut_off_since_are_failed_rows(tmp_path: Path) -> None:
    listing = listed(tmp_path, "s.tar", tar(SAMPLES), unit_rows=1)
    Path(tmp_path / "s.tar").write_bytes(tar(SAMPLES)[:2048])
    assert failures(requests_of(listing)) == [None, ("s.tar:1", "BrokenFile")]


def test_a_compressed_file_is_read_from_any_byte(tmp_path: Path) -> None:
    data = np.random.default_rng(0).bytes(3_000_000)
    (tmp_path / "a.gz").write_bytes(gzip.compress(data, 1))
    for offset in (0, 2_000_000, 10, 2_999_999):
        with opened(f"{tmp_path}/a.gz", offset) as file:
            assert file.read(100) == data[offset : offset + 100]


def test_a_batch_request_is_its_messages_and_what_it_asks_of_the_answer(tmp_path: Path) -> None:
    rows = [request(1, "a/b.png"), request(2, "x.png", tools=[{"type": "function"}], n=1, stream=False)]
    first, second = requests_of(listed(tmp_path, "b.jsonl", json_lines(rows)))
    assert (first.id, first.options) == ("r1", '{"max_tokens": 9}')
    assert [image.uri for image in images_of(first, None)] == [f"{tmp_path}/a/b.png"]
    assert json.loads(second.options or "") == {"max_tokens": 10, "tools": [{"type": "function"}]}


def test_the_schema_of_a_batch_request_is_a_column(tmp_path: Path) -> None:
    format = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "integer"}}}
    rows = [request(1, "a.png"), request(2, "a.png", response_format=format)]
    listing = listed(tmp_path, "b.jsonl", json_lines(rows), ColumnChoices(json_schema="response_format"))
    assert [one.values["response_format"] for one in requests_of(listing)] == ["", '{"type": "integer"}']


@pytest.mark.parametrize(
    ("pattern", "names"),
    [("{0..10..5}", None), ("{09..11}", "09 10 11"), ("{08..010}", "008 009 010"), ("{0..2}", "0 1 2")],
)
def test_numbers_in_braces_are_as_wide_as_the_widest_where_one_begins_with_a_zero(
    pattern: str, names: str | None
) -> None:
    assert expand_braces(f"/gone/{pattern}") == [f"/gone/{name}" for name in (names or pattern).split()]


def test_braces_stand_for_names_where_nothing_has_that_name(tmp_path: Path) -> None:
    url = f"{tmp_path}/s-{{008..010}}{{,.x}}"
    names = ["008", "008.x", "009", "009.x", "010", "010.x"]
    assert expand_braces(url) == [f"{tmp_path}/s-{name}" for name in names]
    Path(url).touch()
    assert expand_braces(url) == [url]


@pytest.mark.parametrize("name", ["", "*.parquet", "part.parquet", "year=1", "year=1/*"])
def test_a_delta_table_is_never_read_as_loose_parquet(root: str, name: str) -> None:
    for file in ("t/part.parquet", "t/year=1/part.parquet"):
        write(fs.join(root, file), pa.table({"image": [b"1"]}))
    fs.write_atomic(fs.join(root, "t/_delta_log/0.json"), b"{}")
    with pytest.raises(Refused, match="has a Delta table"):
        list_input([fs.join(root, "t", name) if name else fs.join(root, "t")], CONVENTION)


def test_folders_of_partitions_are_columns(tmp_path: Path) -> None:
    for part in ("year=2026/kind=a%20b", "year=2027/kind=__HIVE_DEFAULT_PARTITION__", "year=x/kind=%FF"):
        write(f"{tmp_path}/{part}/0.parquet", pa.table({"image": [b"1", b"2"]}))
    table = read_all(list_input([str(tmp_path)], ColumnChoices(keep=("year", "kind"), values=("year",))))
    assert table.column("keep:year").to_pylist() == ["2026", "2026", "2027", "2027", "x", "x"]
    assert table.column("keep:kind").to_pylist() == ["a b", "a b", None, None, "%FF", "%FF"]


@pytest.mark.parametrize(
    ("folder", "values"),
    [
        pytest.param("x=2026", pa.array([2026, 2026]), id="integers"),
        pytest.param("x=08", pa.array([8, 8]), id="integers with a zero before them"),
        pytest.param("x=a%20b", pa.array(["a b", "a b"]), id="texts"),
        pytest.param("x=2026-01-02", pa.array([date(2026, 1, 2)] * 2), id="dates"),
        pytest.param("x=a", pa.array(["a", "a"]).dictionary_encode(), id="a dictionary"),
        pytest.param("x=__HIVE_DEFAULT_PARTITION__", pa.array([None, None], pa.int64()), id="null"),
    ],
)
def test_a_column_that_its_folder_states_as_well_is_the_files_own(
    tmp_path: Path, folder: str, values: pa.Array
) -> None:
    write(f"{tmp_path}/{folder}/0.parquet", pa.table({"image": [b"1", b"2"], "x": values}))
    listing = list_input([str(tmp_path)], ColumnChoices(keep=("x",)))
    assert restore(read_all(listing)).column("keep:x").to_pylist() == values.to_pylist()


@pytest.mark.parametrize(
    "values",
    [
        pytest.param(pa.array([2026, 1999]), id="another value"),
        pytest.param(pa.array([2026, None]), id="null"),
        pytest.param(pa.array(["2026", "a"]), id="texts"),
        pytest.param(pa.array([[2026], [2026]]), id="lists"),
        pytest.param(pa.array([date(2026, 1, 1)] * 2), id="a type that the folder's text is none of"),
    ],
)
def test_a_column_that_says_otherwise_than_its_folder_is_refused_where_it_is_used(
    tmp_path: Path, values: pa.Array
) -> None:
    write(f"{tmp_path}/x=2026/0.parquet", pa.table({"image": [b"1", b"2"], "x": values}))
    with pytest.raises(Refused, match=r"column 'x' of .*x=2026/0.parquet must be 2026 in every row, as its folder"):
        list_input([str(tmp_path)], ColumnChoices(keep=("x",)))
    assert list_input([str(tmp_path)], CONVENTION).num_rows == 2


def test_folders_and_texts_beside_images_are_columns(root: str) -> None:
    for name in ("a.jpg", "cats/b.jpg", "cats/c.jpg"):
        fs.write_atomic(fs.join(root, name), b"x")
    fs.write_atomic(fs.join(root, "cats/b.txt"), "\ufeffa café\n".encode())
    fs.write_atomic(fs.join(root, "cats/c.txt"), b"\xe9")
    listing = list_input([root], ColumnChoices(keep=("label", "caption=text")))
    table = read_all(listing)
    assert table.column("keep:label").to_pylist() == [None, "cats", "cats"]
    assert table.column("keep:caption").to_pylist() == [None, "a café", None]
    assert failures(requests_of(listing)) == [None, None, ("cats/c.jpg", "InvalidText")]


def test_a_text_beside_an_image_is_no_way_into_the_system(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"x")
    (tmp_path / "a.txt").symlink_to("/proc/self/environ")
    listing = list_input([str(tmp_path)], ColumnChoices(keep=("caption=text",)))
    assert failures(requests_of(listing)) == [("a.jpg", "NotAllowed")]
    assert read_all(listing).column("keep:caption").to_pylist() == [None]


def test_what_is_beside_the_input_is_counted_and_named(tmp_path: Path) -> None:
    for name in ("0.tar", "1.tar"):
        (tmp_path / name).write_bytes(tar(SAMPLES))
    for name in ("0.parquet", "0_stats.json", "notes.txt", "rows.csv"):
        (tmp_path / name).write_bytes(b"x")
    left_out = list_input([str(tmp_path)], CONVENTION).left_out
    assert left_out == (
        "3 of text beside the input (0_stats.json, notes.txt, rows.csv), 1 tables of the shards beside them (0.parquet)"
    )


TABLE = pa.table({"id": [str(n) for n in range(20)], "image": [b"%d" % n for n in range(20)]})


@pytest.mark.parametrize("unit_rows", [1, 4, 20])
def test_a_saved_dataset_is_read_from_any_row(tmp_path: Path, unit_rows: int) -> None:
    write_saved(tmp_path / "train", TABLE)
    found = requests_of(list_input([str(tmp_path)], CONVENTION, unit_rows=unit_rows))
    assert [(one.id, bytes(one.images[0].data or b"")) for one in found] == [(str(n), b"%d" % n) for n in range(20)]


def test_rows_that_a_saved_dataset_lost_since_are_failed_rows(tmp_path: Path) -> None:
    write_saved(tmp_path / "train", TABLE)
    listing = list_input([str(tmp_path)], CONVENTION, unit_rows=9)
    write_saved(tmp_path / "less", TABLE.slice(0, 9))
    (tmp_path / "less/data-00000-of-00001.arrow").replace(tmp_path / "train/data-00000-of-00001.arrow")
    assert failures(requests_of(listing))[8:10] == [None, ("train/data-00000-of-00001.arrow:9", "BrokenFile")]


def test_a_saved_dataset_in_another_order_than_its_files_is_refused(tmp_path: Path) -> None:
    write_saved(tmp_path / "train", TABLE)
    (tmp_path / "train/state.json").write_text('{"_indices_files": [\n {"filename": "indices.arrow"}]}')
    with pytest.raises(Refused, match=r"flatten_indices"):
        list_input([str(tmp_path)], CONVENTION)


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.json"])
def test_an_index_that_is_kept_cuts_the_input_as_before(tmp_path: Path, name: str) -> None:
    first = listed(tmp_path, name, TEXTS[name], unit_rows=7)
    out = f"{tmp_path}/out"
    keep_index(out, first.files, first.listed)
    again = list_input([f"{tmp_path}/{name}"], CONVENTION, unit_rows=7, output=out)
    assert len(read_index(out)) == 1
    assert again.row_ranges.equals(first.row_ranges)
    assert requests_of(again) == requests_of(first)


def test_an_index_counts_for_the_very_file_alone(tmp_path: Path) -> None:
    first, out = listed(tmp_path, "a.jsonl", json_lines(ROWS)), f"{tmp_path}/out"
    keep_index(out, first.files, first.listed)
    assert listed(tmp_path, "a.jsonl", json_lines(ROWS[:9])).num_rows == 9
    assert list_input([f"{tmp_path}/a.jsonl"], CONVENTION, output=out).num_rows == 9
    Path(out, "index.pq").write_bytes(b"damaged")
    assert list_input([f"{tmp_path}/a.jsonl"], CONVENTION, output=out).num_rows == 9


def vlmevalkit(cells: Sequence[tuple[str, str]]) -> str:
    """A file of VLMEvalKit's, of these indices and images."""
    return "index\timage\tquestion\n" + "".join(f"{index}\t{image}\tWhat?\n" for index, image in cells)


@pytest.mark.parametrize("first", [0, 3], ids=["an earlier unit", "a later one"])
def test_a_cell_may_name_the_row_that_has_its_image(tmp_path: Path, first: int) -> None:
    cells = [(str(n), "1000001") for n in range(3)]
    cells.insert(first, ("1000001", base64.b64encode(picture(1)).decode()))
    found = requests_of(listed(tmp_path, "bench.tsv", vlmevalkit(cells), unit_rows=2))
    assert [bytes(one.images[0].data or b"") for one in found] == [picture(1)] * 4


def test_a_cell_that_names_no_row_is_a_path_and_a_damaged_image_is_an_error_of_all_who_name_it(tmp_path: Path) -> None:
    cells = [("1", "404"), ("2", "/9j/" + "A" * 501), ("3", "2")]
    found = requests_of(listed(tmp_path, "bench.tsv", vlmevalkit(cells)))
    assert found[0].images[0].uri == f"{tmp_path}/404"
    said = [one.failure.message if one.failure else "" for one in found]
    assert ["must be valid base64" in one for one in said] == [False, True, True]
    assert "row 2 of" in said[2]
