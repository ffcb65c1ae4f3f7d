"""The command line: what it takes from flags and YAML, what it refuses and how, before anything starts."""

import json
import os
import socket
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from jobs.__main__ import main
from schemas.job import KINDS, JobSettings
from schemas.setting_kinds import HEADINGS
from tests.inputs import bad_row, good_row, write_parquet
from tests.test_verify import run_without_ray
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
    assert "1 row of" in shown
    assert "one: 'Q1?'" in shown
    assert "two: 'Q2?'" in shown


def test_a_dry_run_says_what_is_asked_of_the_answers(source: str, capsys) -> None:
    asked = ("--choices", "a,b", "--num-answers", "3", "--temperature", "1", "--image-tokens", "0.4")
    assert main(dry_run(source, *asked)) == 0
    shown = capsys.readouterr().err
    for line in (
        'form     choices: ["a", "b"]',
        "answers  3 draws to every prompt",
        "images   40% of their tokens are kept",
    ):
        assert line in shown


def test_a_form_stands_in_the_config_file_as_it_does_in_a_flag(source: str, tmp_path: Path, capsys) -> None:
    config = tmp_path / "job.yaml"
    for written, shown in (
        ("json_schema: {enum: [a, b]}", 'json schema: {"enum": ["a", "b"]}'),
        ("choices: a,b", 'choices: ["a", "b"]'),
        ("bad_words: [a]", 'bad words: ["a"]'),
    ):
        config.write_text(f"input: [{source}]\noutput: out\nmodel: {checkpoint()}\n{written}\n")
        assert main(["caption", "--config", str(config), "--dry-run"]) == 0
        assert f"form     {shown}" in capsys.readouterr().err


def test_ocr_asks_its_own_question_and_leaves_room_for_long_answers(source: str, capsys) -> None:
    assert main(["ocr", *dry_run(source, "--max-new-tokens", "9")[1:], "--prompt", "What does it say?"]) == 0
    assert "prompt: 'What does it say?'" in capsys.readouterr().err
    assert main(["ocr", *dry_run(source, "--image-tokens", "0.4")[1:], "--prompt", "What does it say?"]) == 2
    assert "--image-tokens 0.4 is not for ocr" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        pytest.param(
            ["--temperature", "-1"], "--temperature: input should be greater than or equal to 0, got", id="value"
        ),
        pytest.param(
            ["--tempreature", "1"],
            "--tempreature is no flag of caption; did you mean --temperature?",
            id="unknown flag",
        ),
        pytest.param(["--shard", "0/4"], "--shard must be I/N, the I-th of N parts from 1/N to N/N", id="no part"),
        pytest.param(["--shard", "5/4"], "as 2/8, got '5/4'", id="a part too many"),
        pytest.param(["--shard", ""], "as 2/8, got ''", id="part of a shell's unset variable"),
        pytest.param(["--input", "s3:///in"], "--input must name a bucket, got 's3:///in'", id="no bucket"),
        pytest.param(["--json-schema", "gone"], "error: --json-schema gone: the file cannot be read", id="said once"),
        pytest.param(["--limit", "x"], "--limit: input should be a valid integer", id="not a number"),
        pytest.param(
            ["--min-new-tokens", "999"], "min_new_tokens must be at most max_new_tokens (256), got 999", id="both"
        ),
        pytest.param(["--prompt", "a=x", "a=y"], "prompt names must differ, got a more than once", id="prompts"),
        pytest.param(["--id-column", "numbr"], "number", id="a near column name"),
        pytest.param(["--keep", "question=number"], "", id="keep is fine"),
        pytest.param(["--revision", "v2"], "--revision is for a model of the hub, got 'v2' for", id="revision"),
        pytest.param(["--keep", "text=number"], "text", id="keep collides"),
        pytest.param(["--regex", "(a"], "--regex must be a form that answers can be held to", id="a form"),
        pytest.param(["--json-schema", '{"not": {}}'], "--json-schema must have no keyword", id="a keyword"),
        pytest.param(["--json-schema-column", "number"], "--json-schema-column number must be a string", id="column"),
        pytest.param(["--regex", "a", "--parse"], "--parse needs one --json-schema for all rows", id="parse"),
        pytest.param(["--choices", "a,b", "--logprobs", "2"], "", id="choices are fine"),
        pytest.param(["--image-tokens", "1.5"], "--image-tokens: input should be less than or equal to 1", id="share"),
        pytest.param(["--stop", ""], "stop must be a tuple of non-empty strings", id="stop"),
        pytest.param(["--stop", "\udcff"], "stop must be text that can be written as UTF-8", id="stop of bytes"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(source: str, flags: list[str], message: str, capsys) -> None:
    status = main(dry_run(source, *flags))
    said = capsys.readouterr().err
    assert message in said
    assert (status, "error: " in said) == ((2, True) if message else (0, False))
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("command", "by"), [(["ocr", "--reference-column", "row"], "--reference-column"), (["sweep"], "a sweep")]
)
def test_scoring_names_the_packages_that_it_misses(
    command: list[str], by: str, source: str, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "jiwer", None)  # as on a machine without it
    config = tmp_path / "sweep.yaml"
    config.write_text(
        f"output: {tmp_path}/out\nmodels: {{demo: demo}}\nbenchmarks: {{x: {{benchmark: pope, data: x}}}}\n"
    )
    flags = ["--config", str(config)] if command == ["sweep"] else [*dry_run(source)[1:]]
    assert main([*command, *flags]) == 2
    assert f"error: {by} scores answers by jiwer: pip install -e '.[scores]'\n" in capsys.readouterr().err


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


def test_a_dry_run_whose_rows_all_fail_is_no_success(tmp_path: Path, capsys) -> None:
    source = str(write_parquet(tmp_path / "in.parquet", [bad_row(i, "decode") for i in range(3)]))
    assert main(dry_run(source)) == 1
    assert "error: all 3 rows that were read fail" in capsys.readouterr().err
    assert main(dry_run(source, "--max-error-rate", "1")) == 0


def test_a_storage_that_fails_while_the_folder_is_looked_at_is_said_in_a_line(
    source: str, tmp_path: Path, capsys
) -> None:
    (tmp_path / "out" / ".run").mkdir(parents=True)
    (tmp_path / "out" / ".run" / "run.json").symlink_to("run.json")  # opening it fails, though nobody is refused it
    status = main(["caption", "--input", source, "--model", str(checkpoint()), "--output", str(tmp_path / "out")])
    said = capsys.readouterr().err
    assert status == 1
    assert "error: [Errno" in said
    assert "run the same command again to go on" in said


@pytest.mark.parametrize("dry", [["--dry-run"], []])
@pytest.mark.parametrize(
    ("below", "message"),
    [("", "a-file is in the way"), ("/out", "a-file is in the way"), ("/" + "x" * 300, "a-file is in the way")],
)
def test_an_output_that_cannot_be_made_is_refused_before_anything_starts(
    source: str, tmp_path: Path, dry: list[str], below: str, message: str, capsys
) -> None:
    file = tmp_path / "a-file"
    file.write_text("mine", encoding="utf-8")
    flags = ["--input", source, "--model", str(checkpoint()), *dry]
    assert main(["caption", *flags, "--output", f"{file}{below}"]) == 2
    assert message in capsys.readouterr().err
    assert file.read_text(encoding="utf-8") == "mine"
    assert main(["caption", *flags, "--output", f"{tmp_path}/{'x' * 300}"]) == 2
    assert main(["caption", *flags, "--output", "https://example.com/out"]) == 2


def test_a_dry_run_says_that_the_folder_holds_another_run(tmp_path: Path, capsys) -> None:
    settings = run_without_ray(tmp_path).settings
    flags = ["--input", *settings.input, "--output", settings.output, "--model", settings.model, "--unit-rows", "8"]
    assert main(["caption", *flags, "--dry-run", "--prompt", "Another?"]) == 2
    said = capsys.readouterr().err
    assert "holds another run" in said
    assert "max_new_tokens" not in said
    assert main(["caption", *flags, "--dry-run"]) == 0


def test_the_version_is_that_of_the_project(capsys) -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == project["project"]["version"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--inptu", "a", "--output", "b"], "--inptu is no flag of caption; did you mean --input?"),
        (["--input", "a", "--outptu=b"], "--outptu is no flag of caption; did you mean --output?"),
        (
            ["--input", "a", "--output", "b", "--max_new_tokens", "x"],
            "--max-new-tokens: input should be a valid integer",
        ),
        (["--input", "a"], "--output is required"),
        (["--input", "--output", "b"], "--input must be given a value"),
        (["--input", "a", "--output"], "parameter --output requires an argument"),
        (["--input", "a", "--allow-root", "--output", "b"], "--allow-root must be given a value, it has none"),
        (["--input", "a", "--output", "b", "--keep"], "--keep must be given a value, it has none"),
        (["--input", "a", "--output", "b", "--limit", "1", "--limit", "2"], "--limit must be given once, it is there"),
        (["b", "c", "--input", "a", "--output", "b"], "caption takes no more arguments, got b c"),
        ([], "error: --input is required"),
    ],
)
def test_a_flag_that_is_wrong_or_missing_is_named(flags: list[str], message: str, capsys) -> None:
    assert main(["caption", *flags]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["verify"], "OUT is required"),
        (["verify", "a", "b"], "verify takes no more arguments, got b"),
        (["merge", "a", "b"], "--output is required"),
        (["submit", "caption", "--input", "a"], "--address is required"),
        (["submit", "--adress", "a", "caption", "--input", "a"], "--adress is no flag of submit; did you mean --addr"),
        (["retry-failed", "x" * 300], f"{'x' * 300}/.run/run.json must be a file that can be read"),
        (["doctor", "--regex", "(a"], "--regex must be a form that answers can be held to"),
        (["verify", "--config", "https://u:secret@h/x"], "--config https://***@h/x cannot be read: No such file"),
        (["init", "caption", "--to", "https://u:secret@h/x"], "--to https://***@h/x cannot be written: No such file"),
        (["init", "caption", "--to", ""], "--to must be the name of a file, got '': is a variable of the shell"),
        (["init", "ocr", "--to", "/dev/null/x", "--input", ""], "--input must not be empty, got ''"),
        (
            ["init", "sweep", "--to", "/dev/null/x", "--output", "s3://u:secret@b/x"],
            "--output s3://***@b/x must not hold",
        ),
        (["verify", "s3://u:secret@b/x"], "a URL must not hold a user or password, got s3://***@b/x"),
        (
            ["caption", "--input", "a", "--output", "b", "--prompt", "@/dev/zero"],
            "--prompt @/dev/zero: the file cannot be",
        ),
        (["plan", "--input", "a", "--output", "http://h/x"], "--output must be a local folder or in an object store"),
        (["retry-failed", __file__], f"OUT must be a complete run, {__file__} is not"),
    ],
)
def test_other_commands_say_what_is_wrong_in_a_line(command: list[str], message: str, capsys, monkeypatch) -> None:
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    assert main(command) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {message}")
    assert len(said.splitlines()) == 1


def test_init_writes_a_file_for_names_that_are_no_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["init", "caption", "--to", "\udcff.yaml", "--input", "caf\udce9"]) == 0
    assert f'input: ["file://{tmp_path}/caf%E9"]' in Path("\udcff.yaml").read_text(encoding="utf-8")


@pytest.mark.parametrize("columns", ["0", "1", "39"])
def test_help_is_written_for_a_terminal_of_no_width(columns: str, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    assert main(["init", "--help"]) == 0
    assert "Usage: llava-batch init" in capsys.readouterr().out


def test_a_folder_that_is_gone_is_said_and_keeps_nobody_from_help(
    tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert main(["init", "--help"]) == 0
    assert main(["caption", "--input", "/a", "--output", "/b"]) == 2
    assert "error: the current folder must be there, it is not (No such file" in capsys.readouterr().err


def test_without_a_command_there_is_help(capsys) -> None:
    assert main([]) == 0
    assert "Usage: llava-batch COMMAND" in capsys.readouterr().out


def test_every_setting_stands_under_a_heading(capsys) -> None:
    assert list(KINDS) == list(JobSettings.model_fields)
    assert {kind.heading for kind in KINDS.values()} == set(HEADINGS)
    assert main(["ocr", "--help"]) == 0
    shown = capsys.readouterr().out
    places = [shown.index(f" {heading} ") for heading in HEADINGS]
    assert places == sorted(places)
    assert shown.index("llava-batch ocr --input scans/") < places[0]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_is_told_commands_and_flags(shell: str, capsys) -> None:
    assert main(["completion", shell]) == 0
    shown = capsys.readouterr().out
    assert "retry-failed" in shown
    assert "max-new-tokens" in shown


def test_a_run_without_gpus_says_nothing_of_cards(source: str, capsys) -> None:
    assert main(dry_run(source, "--gpus", "0")) == 0
    assert "memory" not in capsys.readouterr().err


def test_a_hub_that_cannot_be_reached_is_refused_in_one_line_without_trying_again(source: str, tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # and nobody listens
        endpoint = f"http://127.0.0.1:{closed.getsockname()[1]}"
        told = {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "cache")}
        for job in ("caption", "ocr"):
            command = [sys.executable, "-m", "jobs", job, "--input", source, "--output", str(tmp_path / "out")]
            done = subprocess.run(
                [*command, "--model", "some/model"],
                env=without_hub(**told),
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 2, done.stderr
            (line,) = done.stderr.splitlines()
            assert line.startswith("error: --model 'some/model' is neither a folder here nor to be had from the hub: ")
            assert f"{endpoint} cannot be reached" in line


def without_hub(**changes: str) -> dict[str, str]:
    """The environment without what says how the hub is to be reached."""
    names = ("HF_HUB_OFFLINE", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")
    return {**{name: value for name, value in os.environ.items() if name not in names}, **changes}


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
