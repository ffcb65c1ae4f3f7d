"""The files of one split of a dataset, by its card or by their names; what is on a hub is like what is in a folder."""

from pathlib import Path

import pytest

from pipeline.sources.finding import Found, find_files
from pipeline.sources.hub_splits import of_split, split_of
from pipeline.sources.versions import at_versions
from schemas.errors import Refused

NAMES = ("data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet", "data/dev-00000.parquet")
CARD = """---
configs:
- config_name: other
  data_files: x/*.parquet
- config_name: default
  data_files:
  - split: test
    path: [data/dev-*, data/train-00001-*]
---
"""


@pytest.fixture
def found(tmp_path: Path) -> Found:
    for name in NAMES:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    return find_files(str(tmp_path), (".parquet",))


def names(found: Found) -> list[str]:
    return [file.url.rsplit("/", 1)[1] for file in found.files]


@pytest.mark.parametrize(
    ("url", "parts"),
    [
        ("hf://datasets/a/b:test", ("hf://datasets/a/b", "test")),
        ("hf://datasets/a/b@v1.0:my.split-2", ("hf://datasets/a/b@v1.0", "my.split-2")),
        ("hf://datasets/a/b/data/x:y.parquet", ("hf://datasets/a/b/data/x:y.parquet", None)),
        ("s3://b/a:test", ("s3://b/a:test", None)),
    ],
)
def test_a_split_is_named_behind_the_dataset(url: str, parts: tuple[str, str | None]) -> None:
    assert split_of(url) == parts


@pytest.mark.parametrize(("split", "number"), [("train", 2), ("validation", 1)])
def test_files_are_of_a_split_by_their_names(found: Found, split: str, number: int) -> None:
    chosen = of_split(found, split)
    assert len(chosen.files) == number
    assert f"{3 - number} of other splits" in str(chosen.left_out)


def test_the_card_is_believed_before_the_names(found: Found, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(CARD)
    assert names(of_split(found, "test")) == ["dev-00000.parquet", "train-00001-of-00002.parquet"]
    with pytest.raises(Refused, match=r":train must be a split of the dataset, it has test"):
        of_split(found, "train")


@pytest.mark.parametrize(
    "card",
    [
        "---\nconfigs: 3\n---\n",
        "---\nconfigs: [1, {data_files: [3]}]\n---\n",
        "---\na: [\n---\n",
        "no head",
        "---\n- x\n---\n",
    ],
)
def test_a_card_that_says_nothing_of_splits_leaves_it_to_the_names(found: Found, tmp_path: Path, card: str) -> None:
    (tmp_path / "README.md").write_text(card)
    assert len(of_split(found, "train").files) == 2


def test_a_split_that_is_not_there_is_refused_with_those_that_are(found: Found, tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r":test must be a split of the dataset, it has train, validation$"):
        of_split(found, "test")
    (tmp_path / "README.md").write_text("---\nconfigs:\n- config_name: a\n- config_name: b\n---\n")
    with pytest.raises(Refused, match="configs a, b, none of which is the default"):
        of_split(found, "train")


def test_a_run_goes_on_at_the_commit_that_it_began_with() -> None:
    begun = [f"hf://datasets/a/b@{'1' * 40}/data/*.parquet", f"hf://datasets/a/c@{'2' * 40}:test", "s3://b/in.parquet"]
    asked = ["hf://datasets/a/b/data/*.parquet", "hf://datasets/a/c:test", "s3://b/in.parquet", begun[0]]
    assert at_versions(asked, begun) == (*begun, begun[0])
