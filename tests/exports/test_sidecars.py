"""Sidecars: a .txt beside each image, whatever is there already and whatever images are called."""

import json
from pathlib import Path

import pytest

from pipeline.exports.export import ExportOptions, export
from pipeline.exports.sidecars import OPENINGS, read_openings, strip_opening
from schemas.errors import Refused
from tests.exports.runs import make_images, make_run, tree
from tests.inputs import good_row, write_parquet

pytest_plugins = ["tests.exports.complete"]

TEXTS = {"a.jpg": "The image shows a cat\non a mat.", "b/c.png": "A dog."}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("sidecars")
    return make_run(folder, make_images(folder / "in", ["a.jpg", "b/c.png", "broken.jpg"]), TEXTS)


def texts(folder: Path) -> dict[str, str]:
    return {name: data.decode() for name, data in tree(folder).items()}


@pytest.mark.parametrize(
    ("options", "first"),
    [
        (ExportOptions(), "The image shows a cat on a mat."),
        (ExportOptions(newlines="keep"), "The image shows a cat\non a mat."),
        (ExportOptions(strip_opening=True), "A cat on a mat."),
        (ExportOptions(prefix="sks, ", suffix=", 4k", strip_opening=True), "sks, A cat on a mat., 4k"),
    ],
)
def test_captions_are_files_of_the_images_names(run: str, tmp_path: Path, options, first: str) -> None:
    said = export(run, str(tmp_path), "sidecars", options)
    assert said == "2 sidecars written, 0 left as they were"
    assert texts(tmp_path)["a.txt"] == first
    assert texts(tmp_path).keys() == {"a.txt", "b/c.txt"}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        pytest.param("file", "DEST must be a folder, .*file is none", id="a file"),
        pytest.param("link", "DEST must be a folder, .*link is none", id="a link to nothing"),
        pytest.param("x" * 300, "DEST must be a path that can be made, got .*: File name too long", id="a long name"),
    ],
)
def test_captions_need_a_folder(run: str, tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(Refused, match=message):
        export(run, str(tmp_path / name), "sidecars", ExportOptions())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link"]


def test_openings_of_a_device_without_an_end_are_refused() -> None:
    with pytest.raises(Refused, match="--openings /dev/zero: the file cannot be read: it must have at most 1,048,576"):
        read_openings(Path("/dev/zero"))


@pytest.mark.parametrize(
    ("exists", "found"),
    [
        ("skip", "mine"),
        ("overwrite", "A dog."),
        ("append", "mine\nA dog."),
        ("prepend", "A dog.\nmine"),
        (None, "mine"),
    ],
)
def test_a_sidecar_that_is_there(run: str, tmp_path: Path, exists, found: str) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "c.txt").write_text("mine")
    for _ in range(2):  # the second time changes nothing
        export(run, str(tmp_path), "sidecars", ExportOptions(exists=exists))
        assert texts(tmp_path)["b/c.txt"] == found


def test_several_prompts_are_lines_or_files(several: str, tmp_path: Path) -> None:
    export(several, str(tmp_path / "lines"), "sidecars", ExportOptions())
    export(several, str(tmp_path / "files"), "sidecars", ExportOptions(prompts_as="files"))
    assert texts(tmp_path / "lines")["a/two.txt"] == "The image shows a cat.\nabout a/two.png"
    assert texts(tmp_path / "files")["a/two.ask.txt"] == "The image shows a cat."
    assert len(texts(tmp_path / "lines")) == 12
    assert len(texts(tmp_path / "files")) == 24


def test_two_images_of_one_sidecar_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    out = make_run(tmp_path, make_images(tmp_path / "in", ["a.jpg", "b.jpg", "a.png"]))
    with pytest.raises(Refused, match=r"a.jpg and a.png would both have the sidecar a.txt"):
        export(out, str(tmp_path / "dest"), "sidecars", ExportOptions())
    assert not (tmp_path / "dest").exists()


def test_hostile_ids_stay_below_the_destination(tmp_path: Path) -> None:
    ids = ["../../up", "/etc/cron.d/x", "a\\..\\b", "..", "x" * 400]
    rows = [{**good_row(number), "id": id} for number, id in enumerate(ids)]
    out = make_run(tmp_path, write_parquet(tmp_path / "in.parquet", rows))
    before = tree(tmp_path)
    export(out, str(tmp_path / "deep" / "dest"), "sidecars", ExportOptions())
    new = tree(tmp_path).keys() - before.keys()
    assert len(new) == 5
    assert all(name.startswith("deep/dest/") for name in new)
    assert not Path("/etc/cron.d/x.txt").exists()


@pytest.mark.parametrize("exists", ["skip", "overwrite", "append"])
def test_links_in_the_destination_are_not_followed(run: str, tmp_path: Path, exists) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "dest").mkdir()
    (tmp_path / "dest" / "b").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Refused, match="over a link outside of it"):
        export(run, str(tmp_path / "dest"), "sidecars", ExportOptions(exists=exists))
    (tmp_path / "dest" / "b").unlink()
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "dest" / "b").mkdir()
    (tmp_path / "dest" / "b" / "c.txt").symlink_to(tmp_path / "mine")
    if exists == "append":
        with pytest.raises(Refused, match="it is a link"):
            export(run, str(tmp_path / "dest"), "sidecars", ExportOptions(exists=exists))
    else:
        export(run, str(tmp_path / "dest"), "sidecars", ExportOptions(exists=exists))
    assert (tmp_path / "mine").read_text() == "mine"


@pytest.mark.parametrize(
    ("text", "stripped"),
    [
        ("The image shows a cat.", "A cat."),
        ("THIS IMAGE DEPICTS: two dogs", "Two dogs"),
        ("In this image, there is a tree.", "A tree."),
        ("The image showsa cat", "The image showsa cat"),
        ("The image shows.", "The image shows."),
        ("A cat is what the image shows.", "A cat is what the image shows."),
        ("The image shows that Ünal sleeps", "Ünal sleeps"),
        ("", ""),
    ],
)
def test_openings_are_stripped(text: str, stripped: str) -> None:
    assert strip_opening(text, read_openings(OPENINGS)) == stripped


def test_the_list_of_openings_can_be_ones_own(run: str, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("# mine\n  The image\n\nThe image shows a\n")
    export(run, str(tmp_path / "dest"), "sidecars", ExportOptions(openings=tmp_path / "mine.txt"))
    assert texts(tmp_path / "dest")["a.txt"] == "Cat on a mat."


def test_simpletuners_columns_and_kohyas_metadata_are_made_as_the_docs_say(run: str, tmp_path: Path) -> None:
    """The commands of docs/exports.md, on a run of our own."""
    import duckdb
    import pandas

    page = Path("docs/exports.md").read_text(encoding="utf-8")
    sql = (
        page.split("```sql\n")[1]
        .split("```")[0]
        .replace("out/", f"{run}/")
        .replace("captions.parquet", f"{tmp_path}/c")
    )
    duckdb.sql(sql)
    table = pandas.read_parquet(tmp_path / "c")
    assert table.columns.tolist() == ["filename", "caption", "width", "height"]
    assert table["filename"].tolist() == ["a.jpg", "b/c.png"]
    code = page.split("```python\n")[1].split("```")[0]
    code = code.replace('"out/', f'"{run}/').replace("metadata.json", f"{tmp_path}/metadata.json")
    exec(compile(code, "docs/exports.md", "exec"), {})
    assert json.loads((tmp_path / "metadata.json").read_text())["a"] == {"caption": TEXTS["a.jpg"]}
