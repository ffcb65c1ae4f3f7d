"""Companions of an adapter, which shape prompts: the chat template it was trained with, and tokens of its own."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from schemas.errors import Refused


def template_in(folder: Path) -> str | None:
    """Return the chat template that an adapter was saved with, None where it has none."""
    written = folder / "chat_template.jinja"
    if written.is_file():
        return written.read_text(encoding="utf-8")
    for name in ("chat_template.json", "tokenizer_config.json"):
        found = _read(folder / name).get("chat_template")
        if isinstance(found, list):  # by name, as older versions of transformers wrote several
            named = {one.get("name"): one.get("template") for one in found if isinstance(one, dict)}
            found = named.get("default")
        if isinstance(found, str) and found:
            return found
    return None


def check_tokens(folder: Path, known: Mapping[str, int]) -> None:
    """Raise Refused where an adapter's tokenizer has tokens that the base's has not, or has under other numbers."""
    for token, number in _tokens_in(folder):
        if known.get(token) != number:
            has = "has not" if token not in known else f"has as {known[token]}"
            raise Refused(
                f"the adapter in {folder} must use its base's tokens, it has {token!r} as {number} and the base {has}: "
                "merge it into a checkpoint with its own tokenizer"
            )


def _tokens_in(folder: Path) -> Iterator[tuple[str, int]]:
    yield from _read(folder / "added_tokens.json").items()
    for entry in _read(folder / "tokenizer.json").get("added_tokens") or ():
        yield entry["content"], entry["id"]


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise Refused(f"{path} must be JSON: {error}") from error
    return found if isinstance(found, dict) else {}
