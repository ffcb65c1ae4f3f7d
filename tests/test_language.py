"""The language of the code: docstrings begin with a verb or a name, and say the thing at once."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("schemas", "pipeline", "jobs", "llava_batch")
INDIRECT = ("What", "Whether", "How", "Which", "That", "Where")


def docstrings_of(path: Path) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        if documented and (text := ast.get_docstring(node)):
            yield getattr(node, "lineno", 1), text


def files() -> list[str]:
    return [path.relative_to(ROOT).as_posix() for top in FOLDERS for path in sorted((ROOT / top).rglob("*.py"))]


@pytest.mark.parametrize("name", files())
def test_no_docstring_begins_with_an_indirect_question(name: str) -> None:
    found = [f"{name}:{line}: {text}" for line, text in docstrings_of(ROOT / name) if text.split()[0] in INDIRECT]
    assert not found


def names_in(path: Path) -> set[str]:
    """Functions, classes and methods of a file, the last as `Class.method`."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    methods = {
        f"{node.name}.{one.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
        for one in node.body
        if isinstance(one, ast.FunctionDef)
    }
    return methods | {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}


def test_the_way_of_a_row_names_what_is_there() -> None:
    named = re.findall(r"`([\w/]+\.py):([\w.]+)`", (ROOT / "AGENTS.md").read_text(encoding="utf-8"))
    assert len(named) >= 10
    files = [path if (ROOT / path).exists() else f"pipeline/{path}" for path, _ in named]
    assert [name for path, (_, name) in zip(files, named, strict=True) if name not in names_in(ROOT / path)] == []
