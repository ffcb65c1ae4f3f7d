"""Lines: which of a text's are rows, and that a unit reads the very lines that were found."""

import io
from pathlib import Path

import pytest

from pipeline.sources.lines import index_lines, read_lines
from pipeline.sources.listing import list_input
from pipeline.sources.source import RowRange
from tests.listings import CONVENTION, requests_of

BLANK = (b"", b" " * 90, b"\t\r\x0b\x0c" * 30)
FILLED = (b"x", b" x", b" " * 90 + b"x", b"x" + b" " * 90, b"\0", b"\x1c", b"\xff")


class Dripping(io.BytesIO):
    """A file that gives no more than so many bytes at once."""

    def __init__(self, data: bytes, most: int) -> None:
        super().__init__(data)
        self.most = most

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(self.most)


@pytest.mark.parametrize("end", [b"", b"\n"], ids=["no end", "an end"])
@pytest.mark.parametrize("at_once", [1, 7, 64, 4096])
def test_the_lines_that_are_found_are_those_that_are_read(at_once: int, end: bytes) -> None:
    texts = [line for pair in zip(FILLED, [*BLANK, *BLANK, b""], strict=True) for line in pair]
    data = b"\n".join(texts) + end
    index = index_lines(Dripping(data, at_once), None)
    assert [texts[number] for number in index.lines] == list(FILLED)
    for row, line in enumerate(index.lines.tolist()):
        one = RowRange(url="u", name="n", start=row, num_rows=1, line=line)
        begun = io.BytesIO(data[index.offsets[row] :])
        assert [(number, bytes(text).rstrip(b"\n")) for number, text in read_lines(begun, one)] == [
            (line + 1, FILLED[row])
        ]


@pytest.mark.parametrize("unit_rows", [1, 2, 9])
def test_a_long_line_of_blanks_is_no_row_and_moves_no_other(tmp_path: Path, unit_rows: int) -> None:
    (tmp_path / "a.txt").write_text("a.jpg\n" + " " * 200 + "\nb.jpg\nc.jpg\n" + "\t" * 99 + "\n")
    listing = list_input([f"{tmp_path}/a.txt"], CONVENTION, unit_rows=unit_rows)
    assert [one.id for one in requests_of(listing)] == ["a.jpg", "b.jpg", "c.jpg"]
