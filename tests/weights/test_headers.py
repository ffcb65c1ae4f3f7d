"""Safetensors files that contradict themselves are named, whatever is wrong with them."""

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from pipeline.weights.headers import INDEX, SINGLE, stored_tensors
from schemas.errors import Refused


def write(path: Path, header: Mapping[str, Any] | bytes, num_bytes: int = 0) -> Path:
    packed = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(packed)) + packed + bytes(num_bytes))
    return path.parent


def tensor(start: int, end: int, shape: Any = (2,), dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def refusal_of(folder: Path) -> str:
    with pytest.raises(Refused) as refused:
        stored_tensors(str(folder))
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize(
    ("header", "num_bytes", "words"),
    [
        pytest.param({"a": tensor(0, 8), "b": tensor(4, 12)}, 12, "b at byte 4 overlaps", id="overlap"),
        pytest.param({"a": tensor(0, 8), "b": tensor(12, 20)}, 20, "b at byte 12 leaves a gap", id="gap"),
        pytest.param({"a": tensor(0, 8)}, 7, "must have", id="torn"),
        pytest.param({"a": tensor(0, 8)}, 9, "must have", id="bytes after the last"),
        pytest.param({"a": tensor(0, 4)}, 4, "8 bytes for a, it has 4", id="fewer bytes than the shape"),
        pytest.param({"a": tensor(8, 0)}, 8, "for a", id="ends before it starts"),
        pytest.param({"a": tensor(0, 8, shape=[-2])}, 8, "for a", id="negative"),
        pytest.param({"a": tensor(0, 8, shape="2")}, 8, "for a", id="no shape"),
        pytest.param({"a": tensor(0, 8, dtype=["F32"])}, 8, "for a", id="no dtype"),
        pytest.param({"a": tensor(0, 8, dtype="F99")}, 8, "F99", id="unknown dtype"),
        pytest.param({"a": [0, 8]}, 8, "for a", id="no tensor"),
        pytest.param(b"[]", 0, "header cannot be read", id="a list"),
        pytest.param(b"{", 0, "header cannot be read", id="broken JSON"),
        pytest.param(b"\xff", 0, "header cannot be read", id="no text"),
    ],
)
def test_a_header_that_cannot_be_true_is_refused(tmp_path: Path, header: Any, num_bytes: int, words: str) -> None:
    assert words in refusal_of(write(tmp_path / SINGLE, header, num_bytes))


@pytest.mark.parametrize("content", [b"", b"1234", b"\xff" * 8, b"\xff" * 100])
def test_a_file_that_is_no_safetensors_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / SINGLE).write_bytes(content)
    assert "header cannot be read" in refusal_of(tmp_path)


def test_the_tensors_of_all_shards_are_found(tmp_path: Path) -> None:
    write(tmp_path / "one.safetensors", {"__metadata__": {"format": "pt"}, "a": tensor(0, 8)}, 8)
    write(tmp_path / "two.safetensors", {"b": tensor(0, 4, dtype="F16")}, 4)
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}))
    found = stored_tensors(str(tmp_path))
    assert {name: (one.dtype, one.shape, one.file) for name, one in found.items()} == {
        "a": ("F32", (2,), "one.safetensors"),
        "b": ("F16", (2,), "two.safetensors"),
    }


@pytest.mark.parametrize(
    ("index", "words"),
    [
        pytest.param("{", "must be JSON", id="broken"),
        pytest.param("[]", "weight_map", id="a list"),
        pytest.param('{"weight_map": {}}', "weight_map", id="empty"),
        pytest.param('{"weight_map": {"a": 1}}', "weight_map", id="no file"),
        pytest.param('{"weight_map": {"a": "../one.safetensors"}}', "inside that folder", id="outside"),
        pytest.param('{"weight_map": {"a": "/one.safetensors"}}', "inside that folder", id="absolute"),
        pytest.param('{"weight_map": {"a": "one.bin"}}', "inside that folder", id="a pickle"),
        pytest.param('{"weight_map": {"a": "two.safetensors"}}', "two.safetensors with 1 tensors", id="absent"),
        pytest.param('{"weight_map": {"b": "one.safetensors"}}', "names b in one.safetensors", id="not in it"),
    ],
)
def test_an_index_that_cannot_be_followed_is_refused(tmp_path: Path, index: str, words: str) -> None:
    write(tmp_path / "one.safetensors", {"a": tensor(0, 8)}, 8)
    (tmp_path / INDEX).write_text(index)
    assert words in refusal_of(tmp_path)


def test_a_tensor_in_two_files_is_refused(tmp_path: Path) -> None:
    for name in ("one.safetensors", "two.safetensors"):
        write(tmp_path / name, {"a": tensor(0, 8), name[0]: tensor(8, 16)}, 16)
    (tmp_path / INDEX).write_text('{"weight_map": {"o": "one.safetensors", "t": "two.safetensors"}}')
    assert "a is in one.safetensors and in two.safetensors" in refusal_of(tmp_path)


@pytest.mark.parametrize("file", ["pytorch_model.bin", "consolidated.00.pth", "model.gguf", None])
def test_weights_in_another_format_are_refused(tmp_path: Path, file: str | None) -> None:
    if file:
        (tmp_path / file).write_bytes(b"")
    message = refusal_of(tmp_path)
    assert "safetensors" in message
    assert (file or "it has none") in message
