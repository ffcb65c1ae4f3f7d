"""Copies of a tiny checkpoint with something changed: what a fine-tune or a broken copy looks like."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.tiny import checkpoint, new_folder

ADDED = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}


def changed(file: str, change: Callable[[dict[str, Any]], object], source: Path | None = None) -> Path:
    """A copy without weights in which `change` has altered the object of a JSON file."""
    folder = copied(source)
    edit(folder / file, change)
    return folder


def written(file: str, content: str) -> Path:
    """A copy without weights in which a file has this content."""
    folder = copied()
    (folder / file).write_text(content)
    return folder


def copied(source: Path | None = None) -> Path:
    """A copy without weights."""
    source = source or checkpoint()
    return Path(
        shutil.copytree(
            source, new_folder(source.name), ignore=shutil.ignore_patterns("*.safetensors"), dirs_exist_ok=True
        )
    )


def edit(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Alter the object of a JSON file."""
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def with_tokens(*tokens: str, special: bool, source: Path | None = None) -> Path:
    """A copy whose tokenizer has these tokens behind those it had."""

    def add(tokenizer: dict[str, Any]) -> None:
        first = len(tokenizer["model"]["vocab"])
        for number, token in enumerate(tokens):
            tokenizer["added_tokens"].append({"id": first + number, "content": token, "special": special, **ADDED})

    return changed("tokenizer.json", add, source)
