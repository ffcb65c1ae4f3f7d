"""Archives whose members are not what they seem: links, names that are no text, fields that stand for others."""

import io
import tarfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from pipeline.sources.columns import ColumnChoices
from pipeline.sources.listing import Listing, list_input
from tests.listings import CONVENTION, read_all, requests_of
from tests.sources.samples import tar

Member = tuple[str, bytes] | tuple[str, bytes, str]  # name and kind, and where a link leads


def archive(folder: Path, members: Sequence[Member], format: int = tarfile.GNU_FORMAT) -> str:
    """Write an archive of files, (name, content), and others, (name, kind, target)."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=format, errors="surrogateescape") as out:
        for name, content, *target in members:
            header = tarfile.TarInfo(name)
            if target:
                header.type, header.linkname = content, target[0]
            header.size = 0 if target else len(content)
            out.addfile(header, io.BytesIO(b"" if target else content))
    (folder / "a.tar").write_bytes(file.getvalue())
    return f"{folder}/a.tar"


def failures(listing: Listing) -> list[tuple[str, str] | None]:
    """The id and the kind of failure of each row."""
    return [one.failure and (one.id, one.failure.type) for one in requests_of(listing)]


@pytest.mark.parametrize(
    ("kind", "said"),
    [(tarfile.LNKTYPE, "link to k1.jpg"), (tarfile.SYMTYPE, "link to k1.jpg"), (tarfile.FIFOTYPE, "pipe or device")],
)
def test_a_sample_of_links_is_a_row_that_says_so_and_none_is_followed(tmp_path: Path, kind: bytes, said: str) -> None:
    url = archive(
        tmp_path, [("k1.jpg", b"1"), ("k2.jpg", kind, "k1.jpg"), ("k3.txt", b"x"), ("k3.jpg", kind, "k1.jpg")]
    )
    listing = list_input([url], CONVENTION, unit_rows=2)
    assert failures(listing) == [None, ("k2", "NotAFile"), ("k3", "NotAFile")]
    assert said in str(requests_of(listing)[1].failure)


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_are_keys_from_whichever_sample_the_reading_begins(tmp_path: Path, format: int) -> None:
    names = ["d/" * 90 + "x" * 99, "é" * 120, "k"]
    url = archive(tmp_path, [(f"{name}.jpg", b"%d" % number) for number, name in enumerate(names)], format)
    found = requests_of(list_input([url], CONVENTION, unit_rows=1))
    assert [(one.id, bytes(one.images[0].data or b"")) for one in found] == list(
        zip(names, [b"0", b"1", b"2"], strict=True)
    )


def test_a_name_that_is_no_utf_8_costs_its_row_its_name_alone(tmp_path: Path) -> None:
    url = archive(
        tmp_path, [("caf\udce9.jpg", b"1"), ("k.jpg", b"2"), ("k.\udce9", b"3"), ("\udce9.a", b""), ("\udce9.a", b"")]
    )
    assert failures(list_input([url], CONVENTION)) == [
        ("a.tar:0", "InvalidText"),
        None,
        ("a.tar:2", "DuplicateMember"),
    ]


FIELDS = b'{"batch:failure": "x", "__key__": "evil", "images": ["x"], "jpg": "y", "uid": "u"}'


def test_no_field_of_a_samples_json_stands_for_what_the_sample_has(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(tar([("k.jpg", b"1"), ("k.json", FIELDS)]))
    listing = list_input([f"{tmp_path}/a.tar"], ColumnChoices(keep=("uid", "batch:failure")))
    (row,) = requests_of(listing)
    assert (row.id, row.failure, [bytes(image.data or b"") for image in row.images]) == ("k", None, [b"1"])
    assert read_all(listing).column("keep:batch:failure").to_pylist() == ["x"]


@pytest.mark.parametrize("json", [b"[1]", b"null", b'{"prompt": "a", "prompt": "b"}', rb'{"\ud800": 1}', b"\xff"])
def test_a_json_member_that_is_no_object_of_its_fields_costs_its_row(tmp_path: Path, json: bytes) -> None:
    (tmp_path / "a.tar").write_bytes(tar([("k.jpg", b"1"), ("k.json", json), ("l.jpg", b"2"), ("l.json", b'{"n": 1}')]))
    listing = list_input([f"{tmp_path}/a.tar"], ColumnChoices(keep=("n",)))
    assert failures(listing) == [("k", "InvalidJson"), None]
