"""What each folder may import: a folder is one idea and one rule, and this page is where the rules are written down."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Floors of the house, the lowest first. A module imports from its own floor and those below, never from above.
FLOORS = (
    "schemas",
    "pipeline.environment",
    "pipeline.storage",
    "pipeline.weights",
    "pipeline.preprocess",
    "pipeline.sources",
    "pipeline.engine.kernels",
    "pipeline.engine.network",
    "pipeline.engine",
    "pipeline.run_folder",
    "pipeline.stages",
    "pipeline.execution",
    "pipeline.scoring",
    "pipeline",  # its top level: what is done, one file a verb
    "pipeline.exports",
    "pipeline.reports",
    "pipeline.sweep",
    "jobs",
    "llava_batch",  # the public names, over all folders
)

# path -> what it must not import (a prefix matches what is below it)
HEAVY = ("torch", "transformers", "ray")
BANNED = {
    "schemas": (*HEAVY, "PIL"),
    "pipeline/storage": (*HEAVY[:1], "ray", "pandas", "PIL"),
    "pipeline/weights": ("ray", "pyarrow", "pandas"),
    "pipeline/preprocess": ("ray", "pandas", "pipeline.weights.proof"),
    "pipeline/sources": (*HEAVY, "pandas"),
    "pipeline/engine": ("ray", "pyarrow", "pandas", "fsspec", "pipeline.sources", "pipeline.storage"),
    "pipeline/run_folder": (*HEAVY, "PIL", "pipeline.sources", "pipeline.preprocess", "pipeline.engine"),
    "pipeline/stages": ("ray", "pipeline.run_folder"),
    "pipeline/scoring": (*HEAVY, "pyarrow", "pandas", "fsspec", "pipeline.engine", "pipeline.storage"),
    "pipeline/sweep": (*HEAVY, "pipeline.engine"),
    "pipeline/exports": (*HEAVY, "pipeline.engine", "pipeline.stages", "pipeline.execution"),
    "pipeline/reports": (*HEAVY, "pipeline.engine", "pipeline.stages"),
    **dict.fromkeys(
        (f"pipeline/{name}.py" for name in ("plan", "verify", "scores")), (*HEAVY, "pipeline.stages", "pipeline.engine")
    ),
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


def floor_of(module: str) -> int | None:
    """The floor of a module, by the longest name of one that it is below; None for what is not ours."""
    found = [floor for floor in FLOORS if module == floor or module.startswith(f"{floor}.")]
    return FLOORS.index(max(found, key=len)) if found else None


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


def test_nothing_imports_from_a_floor_above() -> None:
    upward = []
    for path in (file for top in ("schemas", "pipeline", "jobs", "llava_batch") for file in files_under(top)):
        own = floor_of(".".join(path.relative_to(ROOT).with_suffix("").parts))
        assert own is not None
        above = [name for name in imports_of(path) if name != "pipeline" and (floor_of(name) or 0) > own]
        upward += [f"{path.relative_to(ROOT)} imports {name}" for name in above]
    assert not upward


def test_only_the_execution_imports_ray() -> None:
    users = [
        path.relative_to(ROOT / "pipeline" / "execution").name
        for path in files_under("pipeline") + files_under("jobs") + files_under("llava_batch")
        if "ray" in set(imports_of(path))
    ]
    assert users == ["ray_cluster.py", "ray_data.py", "ray_generate.py"]
