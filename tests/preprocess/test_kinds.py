"""What is no image is told by its kind, never by its bytes."""

import gzip

import pytest

from pipeline.preprocess.image import ImageLimits, decode
from pipeline.preprocess.kinds import kind_of, without_bytes
from schemas.errors import RowError


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        pytest.param(b"\n <!DOCTYPE html><html>", "HTML", id="a web page"),
        pytest.param(b'<?xml version="1.0"?><svg/>', "SVG", id="a drawing"),
        pytest.param(gzip.compress(b"x"), "gzip", id="gzip"),
        pytest.param(b"root:x:0:0\n", "text", id="text"),
        pytest.param("passwört".encode("latin1"), "text", id="text of one byte a letter"),
        pytest.param(b'{"token": 1}', "JSON", id="JSON"),
        pytest.param(bytes(99), "zeros", id="zeros"),
        pytest.param(bytes(range(99)), "nothing known", id="bytes"),
        pytest.param(b"\x00\x00\x00\x18ftypheic", "HEIC", id="HEIC"),
        pytest.param(b"\xff\xd8\xff", "a broken JPEG", id="a JPEG that ends"),
        pytest.param(b"%PDF-1.7", "a PDF", id="PDF"),
    ],
)
def test_bytes_have_a_kind(data: bytes, kind: str) -> None:
    assert kind_of(data) == kind


@pytest.mark.parametrize(
    "data",
    [
        b"hunter2:root:x:0:0\n",
        b"P6 hunter2 hunter2\n",
        b"P1\nhunter2hunter2hunter2\n",
        b"P5 3 3 hunter2 \x00",
        b"GIF8hunter2",
    ],
)
def test_no_message_shows_what_a_file_holds(data: bytes) -> None:
    with pytest.raises(RowError) as caught:
        decode(data, ImageLimits())
    assert "hunter" not in str(caught.value)


def test_a_decoders_message_ends_where_it_shows_what_it_read() -> None:
    assert without_bytes("broken PNG file (chunk b'secr')") == "broken PNG file (chunk"
    assert without_bytes("Token too long in file header: secret") == "Token too long in file header"
    assert without_bytes("image file is truncated (3 bytes not processed)").endswith("not processed)")
