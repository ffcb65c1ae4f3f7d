"""Folders: shards and documents, read back by what they are for."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.exports.documents import _natural
from pipeline.exports.export import ExportOptions, export
from pipeline.exports.webdataset import short_key
from schemas.errors import Refused
from tests.exports.runs import make_images, make_run, tree
from tests.images import encoded, noise
from tests.inputs import good_row, write_parquet
from tests.pdfs import pdf

pytest_plugins = ["tests.exports.complete"]

# webdataset closes the tars that it has read when they are collected, and not before.
pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning"),
]


def test_webdataset_finds_images_captions_and_columns(several: str, tmp_path: Path) -> None:
    import webdataset

    export(several, str(tmp_path / "shards"), "webdataset", ExportOptions())
    urls = [str(path) for path in sorted((tmp_path / "shards").iterdir())]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False, empty_check=False))
    assert len(samples) == 12
    first = samples[0]
    assert first["__key__"] == "a/one"
    assert {"jpg", "ask.txt", "ask.json", "tell.txt", "tell.json"} <= first.keys()
    assert first["jpg"] == Path(several, "..", "in", "a", "one.jpg").read_bytes()
    assert json.loads(first["ask.json"])["text"] == first["ask.txt"].decode()
    assert {sample["__key__"] for sample in samples} >= {"a/two", "zoë 🐈"}


def test_captions_alone_stand_beside_the_images(single: str, tmp_path: Path) -> None:
    import webdataset

    export(single, str(tmp_path / "shards"), "webdataset", ExportOptions(images=False))
    samples = list(webdataset.WebDataset(str(tmp_path / "shards" / "00000.tar"), shardshuffle=False, empty_check=False))
    assert len(samples) == 12
    assert {name for sample in samples for name in sample if name[0] != "_"} == {"txt", "json"}


def test_keys_have_no_dots_and_stay_apart(tmp_path: Path) -> None:
    import webdataset

    names = ["v1.5/a.jpg", "a.b.jpg", "c.jpg", "c.png"]
    out = make_run(tmp_path, make_images(tmp_path / "in", names))
    export(out, str(tmp_path / "shards"), "webdataset", ExportOptions())
    found = webdataset.WebDataset(str(tmp_path / "shards" / "00000.tar"), shardshuffle=False, empty_check=False)
    keys = {json.loads(sample["json"])["id"]: sample["__key__"] for sample in found}
    assert keys == {"v1.5/a.jpg": "v1%2E5/a", "a.b.jpg": "a%2Eb", "c.jpg": "c%2Ejpg", "c.png": "c%2Epng"}
    assert short_key("000000017") == "000000017"


@pytest.mark.parametrize("images", [False, True])
def test_datasets_loads_the_folder(several: str, tmp_path: Path, images: bool) -> None:
    import datasets

    export(several, str(tmp_path / "dataset"), "dataset", ExportOptions(images=images, language=("en",)))
    datasets.disable_progress_bars()
    found = datasets.load_dataset(str(tmp_path / "dataset"), cache_dir=str(tmp_path / "cache"), split="train")
    assert found.num_rows == 26
    assert found["text"][0].startswith("=HYPERLINK")
    if images:
        assert isinstance(found.features["image"], datasets.Image)
        assert found[0]["image"].size == (40, 30)


def test_a_run_folder_is_a_dataset_as_it_is(single: str, tmp_path: Path) -> None:
    import datasets
    import duckdb
    import pandas
    import polars

    Path(single, ".run", "report.html").write_text("a page")
    Path(single, ".run", "errors").mkdir()
    Path(single, ".run", "errors", "decode-KeyError.txt").write_text("a trace")
    Path(single, ".run", "scores.pq").write_bytes(Path(single, ".run", "input.pq").read_bytes())
    datasets.disable_progress_bars()
    found = datasets.load_dataset(single, cache_dir=str(tmp_path / "cache"))
    assert {split: table.num_rows for split, table in found.items()} == {"train": 13}
    ids = found["train"]["id"][:]
    assert datasets.load_dataset("parquet", data_dir=single, split="train", cache_dir=str(tmp_path))["id"][:] == ids
    assert pandas.read_parquet(single)["id"].tolist() == ids
    assert pq.read_table(single)["id"].to_pylist() == ids
    assert polars.read_parquet(f"{single}/**/*.parquet")["id"].to_list() == ids
    assert polars.read_parquet(single, use_pyarrow=True)["id"].to_list() == ids
    for all in (f"'{single}/**/*.parquet'", f"read_parquet('{single}')"):
        assert duckdb.sql(f"select id from {all}").fetchall() == [(id,) for id in ids]


def test_integer_ids_are_joined_by_their_text(tmp_path: Path) -> None:
    import duckdb
    import pandas
    import polars

    images = [encoded(noise(20, 20, seed=number), "PNG") for number in range(5)]
    ids = pa.array([7, -1, 2**62, 0, 10], pa.int64())
    pq.write_table(pa.table({"id": ids, "image": images, "number": range(5)}), tmp_path / "in.parquet")
    source, out = str(tmp_path / "in.parquet"), make_run(tmp_path, tmp_path / "in.parquet", {"7": "0", "-1": "1"})
    wanted = ["0", "1", f"about {2**62}", "about 0", "about 10"]
    by_pandas = pandas.read_parquet(source).astype({"id": str}).merge(pandas.read_parquet(out), on="id")
    assert by_pandas.sort_values("number")["text"].tolist() == wanted
    read = polars.read_parquet(source).with_columns(polars.col("id").cast(str))
    assert read.join(polars.read_parquet(f"{out}/answers"), on="id").sort("number")["text"].to_list() == wanted
    joined = f"'{source}' i join '{out}/answers/*.parquet' a on cast(i.id as varchar) = a.id"
    assert duckdb.sql(f"select text from {joined} order by number").fetchall() == [(text,) for text in wanted]


def test_the_card_says_what_was_run_and_keeps_paths_to_itself(several: str, tmp_path: Path) -> None:
    from huggingface_hub import DatasetCard

    export(several, str(tmp_path / "dataset"), "dataset", ExportOptions(language=("en",), license="cc0-1.0"))
    text = (tmp_path / "dataset" / "README.md").read_text(encoding="utf-8")
    told = DatasetCard(text).data.to_dict()
    assert told["size_categories"] == ["n<1K"]
    assert (told["language"], told["license"]) == (["en"], "cc0-1.0")
    assert told["configs"][0]["data_files"] == [{"split": "train", "path": "data/*.parquet"}]
    assert "26: 24 ok, 2 failed" in text
    assert "| NotAnImage at decode | 2 |" in text
    assert "llava-batch caption --input in --output out" in text
    assert str(tmp_path.parent) not in text


def test_a_dataset_of_no_rows_can_be_loaded(single: str, tmp_path: Path) -> None:
    import polars

    export(single, str(tmp_path / "dataset"), "dataset", ExportOptions(finish_reason=("repetition",)))
    assert polars.read_parquet(tmp_path / "dataset" / "data" / "*.parquet").height == 0


def test_images_of_a_changed_input_are_refused(tmp_path: Path) -> None:
    out = make_run(tmp_path, make_images(tmp_path / "in", ["a.jpg"]))
    (tmp_path / "in" / "a.jpg").write_bytes(b"another")
    with pytest.raises(Refused, match="its input has changed"):
        export(out, str(tmp_path / "x"), "webdataset", ExportOptions())
    assert not (tmp_path / "x").exists()


def test_images_in_the_rows_of_a_table_come_along(tmp_path: Path) -> None:
    rows = [good_row(number) for number in range(6)]
    out = make_run(tmp_path, write_parquet(tmp_path / "in.parquet", rows))
    export(out, str(tmp_path / "shards"), "webdataset", ExportOptions())
    import webdataset

    found = webdataset.WebDataset(str(tmp_path / "shards" / "00000.tar"), shardshuffle=False, empty_check=False)
    images = [sample.get("jpg") or sample.get("png") or sample.get("webp") for sample in found]
    assert images == [row["image"]["bytes"] for row in rows]


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("pages")
    names = ["book/page-10.jpg", "book/page-9.jpg", "book/page-11-broken.jpg", "book/x/1.jpg", "loose.jpg"]
    make_images(folder / "in", names)
    (folder / "in" / "letter.pdf").write_bytes(pdf(2))
    return make_run(folder, folder / "in", {"letter.pdf#page=1": "Dear", "letter.pdf#page=2": "Yours"})


def test_pages_are_joined_in_their_order(pages: str, tmp_path: Path) -> None:
    export(pages, str(tmp_path / "md"), "markdown", ExportOptions())
    found = {name: data.decode() for name, data in tree(tmp_path / "md").items()}
    assert found["letter.md"] == "Dear\n\nYours\n"
    failed = "<!-- page 3 (page-11-broken.jpg) failed: NotAnImage at decode -->"
    assert found["book.md"] == f"about book/page-9.jpg\n\nabout book/page-10.jpg\n\n{failed}\n"
    assert found.keys() == {"letter.md", "book.md", "book/x.md", "in.md"}


def test_failed_pages_are_left_out_where_that_is_asked(pages: str, tmp_path: Path) -> None:
    export(pages, str(tmp_path / "text"), "text", ExportOptions(status="ok"))
    assert "failed" not in (tmp_path / "text" / "book.txt").read_text()


def test_a_document_is_a_row_for_dolma(pages: str, tmp_path: Path) -> None:
    export(pages, str(tmp_path / "dolma.jsonl"), "dolma", ExportOptions())
    rows = {
        row["metadata"]["Source-File"]: row
        for row in map(json.loads, (tmp_path / "dolma.jsonl").read_bytes().splitlines())
    }
    assert all(row.keys() >= {"id", "text", "source", "added", "created", "metadata"} for row in rows.values())
    book = rows["book"]
    assert book["metadata"]["failed-pages"] == [3]
    spans = book["attributes"]["pdf_page_numbers"]
    assert [book["text"][start:end] for start, end, _ in spans][:2] == [
        "about book/page-9.jpg",
        "about book/page-10.jpg",
    ]
    assert [number for _, _, number in spans] == [1, 2, 3]


def test_pages_of_several_prompts_need_a_choice(several: str, tmp_path: Path) -> None:
    with pytest.raises(Refused, match="choose one by --prompt-id"):
        export(several, str(tmp_path / "x"), "markdown", ExportOptions())
    export(several, str(tmp_path / "x"), "markdown", ExportOptions(prompt_id=("tell",)))


def test_names_are_sorted_as_people_do() -> None:
    names = ["page 10", "page 9", "9", "page", "10", "page 9b"]
    assert sorted(names, key=_natural) == ["9", "10", "page", "page 9", "page 9b", "page 10"]
