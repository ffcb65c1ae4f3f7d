"""The command line: what it takes from flags and YAML, what it refuses and how, before anything starts."""

import json
from pathlib import Path

import pytest

from jobs.__main__ import main
from tests.inputs import bad_row, good_row, write_parquet
from tests.tiny import checkpoint


@pytest.fixture
def source(tmp_path: Path) -> str:
    return str(write_parquet(tmp_path / "in.parquet", [good_row(0), bad_row(1, "decode"), good_row(2)]))


def dry_run(source: str, *flags: str) -> list[str]:
    return ["caption", "--input", source, "--output", "out", "--model", str(checkpoint()), "--dry-run", *flags]


def test_a_dry_run_shows_the_rows_as_the_model_gets_them(
    source: str, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(dry_run(source, "--keep", "number")) == 0
    shown = capsys.readouterr().err
    assert "3 rows of 1 parquet file" in shown
    assert "image: column 'image' (struct)" in shown
    assert "prompt: column 'question'" in shown
    assert "keep: column 'number' as 'number'" in shown
    assert "row-1  prompt  error at decode: BrokenImage" in shown
    assert "'<user><image>\\nWhat is number 0?<assistant>'" in shown
    assert not (tmp_path / "out").exists()


def test_flags_override_the_config_file(source: str, tmp_path: Path, capsys) -> None:
    config = tmp_path / "job.yaml"
    config.write_text(
        f"input: [{source}]\noutput: out\nmodel: {checkpoint()}\nlimit: 2\nprompt: ['one=Q1?', 'two=Q2?']\n"
    )
    assert main(["caption", "--config", str(config), "--limit", "1", "--dry-run"]) == 0
    shown = capsys.readouterr().err
    assert "1 rows of" in shown
    assert "one: 'Q1?'" in shown
    assert "two: 'Q2?'" in shown


def test_ocr_asks_its_own_question_and_leaves_room_for_long_answers(source: str, capsys) -> None:
    assert main(["ocr", *dry_run(source, "--max-new-tokens", "9")[1:], "--prompt", "What does it say?"]) == 0
    assert "prompt: 'What does it say?'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        pytest.param(
            ["--temperature", "-1"], "--temperature: input should be greater than or equal to 0, got", id="value"
        ),
        pytest.param(
            ["--tempreature", "1"], "Unknown option: --tempreature. Did you mean --temperature?", id="unknown flag"
        ),
        pytest.param(["--limit", "x"], "--limit: input should be a valid integer", id="not a number"),
        pytest.param(
            ["--min-new-tokens", "999"], "min_new_tokens must be at most max_new_tokens (256), got 999", id="both"
        ),
        pytest.param(["--prompt", "a=x", "a=y"], "prompt names must differ, got a more than once", id="prompts"),
        pytest.param(["--id-column", "numbr"], "number", id="a near column name"),
        pytest.param(["--keep", "question=number"], "", id="keep is fine"),
        pytest.param(["--keep", "text=number"], "text", id="keep collides"),
        pytest.param(["--stop", ""], "stop must be a tuple of non-empty strings", id="stop"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(source: str, flags: list[str], message: str, capsys) -> None:
    status = main(dry_run(source, *flags))
    said = capsys.readouterr().err
    assert message in said
    assert (status, "error: " in said) == ((2, True) if message else (0, False))
    assert "Traceback" not in said


def test_an_unknown_key_in_the_config_names_the_nearest(source: str, tmp_path: Path, capsys) -> None:
    config = tmp_path / "job.yaml"
    config.write_text("temprature: 1\n")
    assert main([*dry_run(source), "--config", str(config)]) == 2
    assert "temperature" in capsys.readouterr().err


def test_a_missing_input_is_refused(tmp_path: Path, capsys) -> None:
    assert main(dry_run(str(tmp_path / "nothing"))) == 2
    assert f"--input {tmp_path}/nothing" in capsys.readouterr().err


def test_a_model_that_is_nowhere_is_refused(source: str, tmp_path: Path, capsys) -> None:
    assert main(["caption", "--input", source, "--output", "out", "--model", str(tmp_path)]) == 2
    assert "--model must be a checkpoint folder with a config.json" in capsys.readouterr().err


@pytest.mark.ray
@pytest.mark.usefixtures("cluster")
def test_the_last_line_of_stdout_is_the_summary(source: str, tmp_path: Path, capsys) -> None:
    out = str(tmp_path / "out")
    flags = ["--input", source, "--output", out, "--model", str(checkpoint()), "--max-new-tokens", "3"]
    assert main(["caption", *flags]) == 0
    captured = capsys.readouterr()
    summary = json.loads(captured.out.splitlines()[-1])
    assert (summary["rows"], summary["ok"], summary["errors"], summary["output"]) == (3, 2, 1, out)
    assert "3 of 3 answers, 1 failed" in captured.err
