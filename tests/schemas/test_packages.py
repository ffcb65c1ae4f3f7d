"""The lines that messages show install what pyproject.toml names."""

import re
import tomllib
from pathlib import Path
from typing import get_args

from schemas.packages import Extra

ROOT = Path(__file__).parents[2]


def test_every_extra_that_a_message_names_is_one_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert set(get_args(Extra)) <= project["optional-dependencies"].keys()


def test_no_message_spells_an_extra_by_itself() -> None:
    files = [path for folder in ("pipeline", "jobs", "schemas") for path in (ROOT / folder).rglob("*.py")]
    spelled = [path.name for path in files if re.search(r"pip install (-e )?'?(\.|llava-batch)\[", path.read_text())]
    assert spelled == ["packages.py"]
