"""Types of columns, and what a text in one is taken for."""

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from pipeline.sources.arrow_types import BARE_BASE64, looks_like_base64

LONG = "A" * 1200


@pytest.mark.parametrize(
    ("text", "is_base64"),
    [
        pytest.param("/9j/" + "Ab9+" * 20, True, id="a JPEG's"),
        pytest.param("iVBORw0KGgo" + "Ab9_-" * 20 + "==", True, id="a PNG's, padded"),
        pytest.param("UklGR" + "Ab9/\r\n" * 30, True, id="in lines"),
        pytest.param("R0lGOD" + "Ab9/" * 20 + "=  \n", True, id="space behind it"),
        pytest.param(LONG, True, id="too long to be a path"),
        pytest.param("/9j/" + "Ab9+" * 5, False, id="a short path"),
        pytest.param("a/photo.jpg", False, id="a path"),
        pytest.param("https://host/" + LONG, False, id="a URL"),
        pytest.param(LONG + ".jpg", False, id="a long path"),
        pytest.param(LONG + "=" * 3, False, id="padded too far"),
        pytest.param("/" + LONG, False, id="from the root"),
        pytest.param("ä" * 1200, False, id="not ASCII"),
        pytest.param("/9j/" + "\n" * 300_000 + "!", False, id="lines without end"),
        pytest.param("", False, id="nothing"),
    ],
)
def test_bare_base64_is_known_from_a_path_alike_in_columns_and_in_texts(text: str, is_base64: bool) -> None:
    assert looks_like_base64(text) == is_base64
    assert pc.match_substring_regex(pa.scalar(text), BARE_BASE64).as_py() == is_base64
