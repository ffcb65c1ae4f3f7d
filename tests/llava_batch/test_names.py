"""The package's names: few, all there, loaded when they are used."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import llava_batch

ROOT = Path(__file__).parents[2]


def test_an_import_loads_neither_torch_nor_ray() -> None:
    code = "import llava_batch, sys; print([name for name in ('torch', 'ray', 'pyarrow') if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert found.stdout == "[]\n"


def test_the_version_is_that_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert llava_batch.__version__ == project["project"]["version"]


@pytest.mark.parametrize("name", llava_batch.__all__)
def test_every_name_is_there(name: str) -> None:
    assert getattr(llava_batch, name) is getattr(llava_batch, name)
    assert name in dir(llava_batch)


def test_type_checkers_see_the_same_names() -> None:
    tree = ast.parse((ROOT / "llava_batch" / "__init__.py").read_text(encoding="utf-8"))
    typed = {alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert typed - {"import_module", "TYPE_CHECKING"} == set(llava_batch.__all__) - {"__version__"}


def test_another_name_is_said_not_to_be_there() -> None:
    with pytest.raises(AttributeError, match=r"no attribute 'generate': it has .*Model"):
        llava_batch.generate  # noqa: B018
