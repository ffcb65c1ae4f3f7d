"""Tables of text: what begins one, and cells of several images."""

import base64
from pathlib import Path

import pytest

from pipeline.sources.listing import list_input
from schemas.request import Request
from tests.inputs import picture
from tests.listings import CONVENTION, requests_of

BASE64 = [base64.b64encode(picture(number)).decode() for number in range(2)]


def rows_of(folder: Path, text: str, unit_rows: int = 1) -> list[Request]:
    (folder / "a.tsv").write_text(text, encoding="utf-8")
    return requests_of(list_input([f"{folder}/a.tsv"], CONVENTION, unit_rows=unit_rows))


@pytest.mark.parametrize("header", ['"id"\timage', '"id"\t"image"', "id\timage", '"i\nd"\timage', '"i\td"\timage'])
def test_a_mark_of_byte_order_is_no_part_of_the_header(tmp_path: Path, header: str) -> None:
    (row,) = rows_of(tmp_path, f"\ufeff{header}\n7\ta.jpg\n")
    assert row.failure is None
    assert row.images[0].uri == f"{tmp_path}/a.jpg"


@pytest.mark.parametrize(
    ("cell", "images"),
    [
        pytest.param(f"['{BASE64[0]}', '{BASE64[1]}']", [picture(0), picture(1)], id="base64"),
        pytest.param(f"['{BASE64[0]}']", [picture(0)], id="one"),
        pytest.param(f"""['a.jpg', "it's.jpg" ,'{BASE64[1]}']""", ["a.jpg", "it's.jpg", picture(1)], id="and paths"),
        pytest.param("['a.jpg', ]", ["['a.jpg', ]"], id="no list"),
        pytest.param("[]", ["[]"], id="an empty one"),
    ],
)
def test_a_cell_may_have_several_images_as_python_writes_lists(
    tmp_path: Path, cell: str, images: list[bytes | str]
) -> None:
    quoted = '"' + cell.replace('"', '""') + '"'
    found = rows_of(tmp_path, f"index\timage\tquestion\n1\t{quoted}\tWhat?\n2\tb.jpg\tWhy?\n")
    assert [one.data or (one.uri or "").removeprefix(f"{tmp_path}/") for one in found[0].images] == images
    assert found[1].images[0].uri == f"{tmp_path}/b.jpg"


def test_a_cell_may_name_a_row_of_several_images(tmp_path: Path) -> None:
    found = rows_of(tmp_path, f"index\timage\tquestion\n1\t['{BASE64[0]}', 'b.jpg']\tWhat?\n2\t1\tWhy?\n")
    assert found[0].images == found[1].images
    assert len(found[0].images) == 2


def test_base64_that_is_damaged_in_a_list_costs_its_row(tmp_path: Path) -> None:
    (row,) = rows_of(tmp_path, f"index\timage\tquestion\n1\t['a.jpg', '/9j/{'A' * 501}']\tWhat?\n")
    assert row.failure is not None
    assert "must be valid base64" in row.failure.message
