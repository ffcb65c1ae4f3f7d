"""What the documentation shows from Python runs as it is pasted."""

import ast
import json
import re
import textwrap
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the demo in it, in which a block may write."""
    (tmp_path / "demo").symlink_to(ROOT / "demo")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def blocks_under(heading: str) -> list[str]:
    section = re.split(r"^## ", PAGE, flags=re.MULTILINE)
    (text,) = [part for part in section if part.startswith(heading)]
    return re.findall(r"^```python\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def run(blocks: list[str], names: dict[str, Any]) -> None:
    for number, block in enumerate(blocks):
        exec(compile(textwrap.dedent(block), f"block {number}", "exec"), names)


def test_a_model_in_a_notebook(checkout: Path) -> None:
    blocks, names = blocks_under("A model in a notebook"), dict[str, Any]()
    run(blocks, names)
    assert len(blocks) == 3
    assert names["answer"].status == "ok"


@pytest.mark.soak
@pytest.mark.usefixtures("cluster")
def test_a_run(checkout: Path) -> None:
    names: dict[str, Any] = {}
    run(blocks_under("A run"), names)
    assert (checkout / "out-of-python" / ".run" / "manifest.json").exists()
    assert names["run"].rows == 8


@pytest.mark.soak
@pytest.mark.usefixtures("cluster")
def test_a_stage_of_your_own_pipeline(checkout: Path) -> None:
    names: dict[str, Any] = {}
    run(blocks_under("A stage"), names)
    assert [row["status"] for row in names["rows"]] == ["ok"] * 6


@pytest.mark.soak
def test_the_notebook_runs_from_its_own_folder(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (checkout / "docs").mkdir()
    monkeypatch.chdir(checkout / "docs")
    notebook, names = json.loads((ROOT / "docs" / "notebook.ipynb").read_text(encoding="utf-8")), dict[str, Any]()
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    run(cells, names)
    assert names["fine"].text == "EXIT"
    assert len(cells) == len([cell for cell in cells if ast.parse(cell).body])
    assert all(not cell.get("outputs") for cell in notebook["cells"])
