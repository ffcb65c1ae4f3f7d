"""What each folder may import: a folder is an import rule, and this table is where it is written down."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# path -> what it must not import (a prefix matches what is below it)
BANNED = {
    "schemas": ("torch", "transformers", "ray", "PIL", "pipeline", "jobs", "demo"),
    "pipeline/preprocess": ("ray", "pandas", "pipeline.engine", "pipeline.sources", "pipeline.run", "jobs", "demo"),
    "pipeline/engine": ("ray", "pyarrow", "pandas", "fsspec", "pipeline.sources", "pipeline.run", "jobs", "demo"),
    "pipeline/scoring": (
        "torch",
        "transformers",
        "ray",
        "pyarrow",
        "pandas",
        "fsspec",
        "pipeline.engine",
        "jobs",
        "demo",
    ),
    "pipeline/weights": (
        "ray",
        "pyarrow",
        "pandas",
        "pipeline.engine",
        "pipeline.sources",
        "pipeline.run",
        "jobs",
        "demo",
    ),
    "pipeline/sweep": ("torch", "transformers", "ray", "pipeline.engine", "jobs", "demo"),
    "pipeline/run.py": ("torch", "transformers", "ray", "jobs", "demo"),
    **dict.fromkeys(
        (
            f"pipeline/{name}.py"
            for name in ("units", "merge", "lock", "plan", "verify", "poison", "patience", "joining", "scores")
        ),
        ("torch", "transformers.models", "ray", "pipeline.stages", "pipeline.dataflow", "jobs", "demo"),
    ),
    "pipeline/sources.py": ("torch", "transformers", "ray", "jobs", "demo"),
    "pipeline/stages.py": ("ray", "jobs", "demo"),
    "pipeline/machine.py": ("ray", "jobs", "demo"),
    "pipeline": ("jobs", "demo"),
}


def imports_of(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def files_under(place: str) -> list[Path]:
    path = ROOT / place
    return [path] if path.is_file() else sorted(path.rglob("*.py"))


@pytest.mark.parametrize("place", BANNED)
def test_a_folder_imports_only_what_it_may(place: str) -> None:
    files = files_under(place)
    found = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in files
        for name in imports_of(path)
        for banned in BANNED[place]
        if name == banned or name.startswith(banned + ".")
    ]
    assert files
    assert not found


def test_only_the_dataflow_imports_ray() -> None:
    users = [path for path in files_under("pipeline") + files_under("jobs") if "ray" in set(imports_of(path))]
    assert users == [ROOT / "pipeline" / "dataflow.py"]
