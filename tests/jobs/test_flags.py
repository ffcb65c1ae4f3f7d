"""What flags and arguments may be called, and how: folders, files, and texts that look like something else."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.__main__ import bind, main
from tests.inputs import good_row, write_parquet
from tests.test_verify import run_without_ray
from tests.tiny import checkpoint

_COMMANDS = (
    ["retry-failed", "{}"],
    ["verify", "{}"],
    ["report", "{}"],
    ["export", "{}", "x.jsonl", "--to", "jsonl"],
    ["merge", "{}", "--output", "whole"],
    ["merge", "shard", "--output", "{}"],
    ["caption", "--input", "in", "--output", "{}"],
)
_ON_A_RUN = _COMMANDS[:5]


def refused(argv: list[str], folder: str, capsys) -> str:
    assert main([one.format(folder) for one in argv]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    return said


@pytest.mark.parametrize("argv", _COMMANDS, ids=" ".join)
def test_a_folder_that_no_file_system_can_have_is_refused(
    argv: list[str], tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a\0b", "file:///a%00b"):
        assert f"must not hold a null character, got {name!r}" in refused(argv, name, capsys)
    (tmp_path / "loop").symlink_to("loop")
    assert "loop must be a folder, it is a link to itself" in refused(argv, "loop", capsys)


@pytest.mark.parametrize("argv", _COMMANDS, ids=" ".join)
@pytest.mark.parametrize("part", [".run", "units", "answers"])
def test_a_part_of_a_run_that_is_a_link_to_nothing_is_refused(
    argv: list[str], part: str, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / part).symlink_to("gone")
    assert f"out/{part} must be a folder, it is a link to gone, which is not there" in refused(argv, "out", capsys)


@pytest.mark.parametrize("argv", _ON_A_RUN, ids=" ".join)
def test_commands_name_a_folder_whose_name_is_no_text_alike(
    argv: list[str], tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert f"file://{tmp_path}/caf%E9" in refused(argv, os.fsdecode(b"caf\xe9"), capsys)


def test_a_run_in_a_folder_whose_name_is_no_text_is_verified(tmp_path: Path, capsys) -> None:
    run_without_ray(tmp_path)
    named = os.path.join(os.fsencode(tmp_path), b"caf\xe9")
    os.rename(os.fsencode(tmp_path / "out"), named)
    assert main(["verify", os.fsdecode(named)]) == 0
    assert capsys.readouterr().out == f"file://{tmp_path}/caf%E9: every answer is there, once\n"


@pytest.mark.parametrize(
    ("argv", "flag"),
    [
        (["--config", "", "caption"], "--config"),
        (["caption", "--config="], "--config"),
        (["sweep", "--config", " "], "--config"),
        (["init", "caption", "--to", ""], "--to"),
    ],
)
def test_a_file_without_a_name_is_refused(argv: list[str], flag: str, capsys) -> None:
    assert main(argv) == 2
    rule = "must be the name of a file, got '"
    assert capsys.readouterr().err.startswith(f"error: {flag} {rule}")


def test_a_null_character_in_the_name_of_a_file_is_refused(capsys) -> None:
    for command in ("caption", "sweep"):
        assert main([command, "--config", "a\0b"]) == 2
        assert capsys.readouterr().err == "error: --config must not hold a null character, got 'a\\x00b'\n"


@pytest.mark.parametrize(
    "argv",
    [["caption", "--input=a", "--output=b", "--limit", "{}"], ["verify", "{}"], ["caption", "--{}"], ["{}"]],
)
def test_a_value_of_thousands_of_characters_is_not_said_whole(argv: list[str], capsys) -> None:
    value = "begin" + "x" * 5000 + "end"
    said = refused(argv, value, capsys)
    assert "begin" in said
    assert "characters left out" in said
    assert len(said) < 1500


@pytest.mark.parametrize("flag", ["stop", "prompt", "bad_words", "keep", "input"])
def test_a_text_that_looks_like_json_is_that_text(flag: str, tmp_path: Path) -> None:
    texts = ('["a"]', "[]", '{"a": [1 ]}', "null")
    given = {"input": ["in"], "output": ["out"], flag: texts}
    typed = [token for name, values in given.items() for token in (f"--{name.replace('_', '-')}", *values)]
    assert getattr(bind(["caption", *typed])["settings"], flag) == texts
    config = tmp_path / "job.yaml"
    config.write_text(f"input: in\noutput: out\n{flag}: ['[\"a\"]', '[]', '{{\"a\": [1 ]}}', 'null']\n")
    config.write_text(config.read_text().replace("input: in\n", "") if flag == "input" else config.read_text())
    assert getattr(bind(["--config", str(config), "caption"])["settings"], flag) == texts
    retried = ["retry-failed", "out", "--stop", '["a"]', "--stop", "[]"]
    assert bind(retried)["choices"].stop == ('["a"]', "[]")


def test_files_come_from_pipes_of_bash(tmp_path: Path) -> None:
    source = write_parquet(tmp_path / "in.parquet", [good_row(0)])
    job = f"{sys.executable} -m jobs --config <(sleep 0.1; echo 'output: {tmp_path}/out'; echo 'input: {source}')"
    flags = '--json-schema <(echo \'{"type": "object"}\') --prompt @<(echo Hello from a pipe)'
    script = f"{job} caption --model {checkpoint()} --dry-run {flags}"
    ran = subprocess.run(["bash", "-c", script], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert "'Hello from a pipe'" in ran.stderr
    assert 'form     json schema: {"type": "object"}' in ran.stderr


@pytest.mark.parametrize("flag", ["--config", "--prompt=@", "--json-schema", "--chat-template"])
def test_a_pipe_that_nobody_writes_to_is_refused_by_its_flag(flag: str, tmp_path: Path, capsys) -> None:
    os.mkfifo(tmp_path / "pipe.jinja")
    source = write_parquet(tmp_path / "in.parquet", [good_row(0)])
    name, equals, before = flag.partition("=")
    given = [f"{flag}{tmp_path}/pipe.jinja"] if equals else [flag, f"{tmp_path}/pipe.jinja"]
    job = ["caption", "--input", str(source), "--output", "out", "--model", str(checkpoint()), "--dry-run"]
    assert main([*job, *given]) == 2
    said = capsys.readouterr().err
    assert f"error: {name} {before}{tmp_path}/pipe.jinja" in said
    assert "it is a pipe that nobody writes to, with nothing in it" in said


def test_a_sweep_says_that_its_file_is_read_again(tmp_path: Path, capsys) -> None:
    read, write = os.pipe()
    os.write(write, b"output: out\n")
    os.close(write)
    assert main(["sweep", "--config", f"/dev/fd/{read}"]) == 2
    os.close(read)
    assert "--config of a sweep must be a file, as it is read again, got /dev/fd/" in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--model", "--adapter"])
def test_the_path_of_a_model_may_be_as_long_as_a_path(flag: str, capsys) -> None:
    path = "/".join(["x" * 200] * 25)
    said = refused(["caption", "--input=a", "--output=b", flag, "{}"], path, capsys)
    assert said.startswith(f"error: {flag} must be a folder or a hub id, of at most 4,000 bytes, got one of 5,024: xxx")


def test_one_problem_and_one_document_are_counted_as_one(tmp_path: Path, capsys) -> None:
    run_without_ray(tmp_path)
    assert main(["export", f"{tmp_path}/out", f"{tmp_path}/all.jsonl", "--to", "dolma"]) == 0
    assert capsys.readouterr().out == f"{tmp_path}/all.jsonl: 1 document written\n"
    (tmp_path / "in.parquet").unlink()
    assert main(["verify", f"{tmp_path}/out"]) == 1
    assert capsys.readouterr().out.endswith(f"{tmp_path}/out: 1 problem\n")


def test_an_output_in_a_store_without_keys_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    keyless = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    environment = {**keyless, "AWS_EC2_METADATA_DISABLED": "true", "HOME": str(tmp_path)}
    argv = [sys.executable, "-m", "jobs", "caption", "--input", "in", "--output", "s3://b/out"]
    ran = subprocess.run(argv, env=environment, capture_output=True, text=True)
    assert ran.returncode == 2
    assert "error: --output must be a folder that can be written, s3://b/out cannot be" in ran.stderr
    assert "NoCredentialsError" in ran.stderr
    assert "check its bucket, and the keys in the environment" in ran.stderr
