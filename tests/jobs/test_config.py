"""A file of settings is read strictly: what is no setting is refused in one line with file, line and key."""

from pathlib import Path

import pytest

from jobs.__main__ import main
from jobs.config import read_config
from schemas.errors import Refused
from tests.inputs import good_row, write_parquet
from tests.tiny import checkpoint

LETTERS = "abcdefghijklmnopqrstu"
PAIRS = zip(LETTERS, LETTERS[1:], strict=False)
LAUGHS = "a: &a [x, x]\n" + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in PAIRS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("- a\n- b\n", "must be a mapping of settings, it is a list", id="list"),
        pytest.param("just words\n", "must be a mapping of settings, it is a text", id="text"),
        pytest.param("a: 1\nb: [x, y\nc: 1\n", ", line 3: not YAML: ", id="broken"),
        pytest.param("a: 1\nb: !!python/name:os.getcwd []\n", ", line 2: a setting has no tag, got tag:", id="tag"),
        pytest.param("a: !mine x\n", ", line 1: a setting has no tag, got !mine", id="own tag"),
        pytest.param("a: &a {b: *a}\n", ", line 1: *a stands for what it is in: no end", id="in itself"),
        pytest.param("a: *b\n", ", line 1: not YAML: found undefined alias 'b'", id="alias of nothing"),
        pytest.param("a: " + "[" * 100_000, ", line 1: settings have at most 50 levels", id="deep"),
        pytest.param("".join(" " * i + "a:\n" for i in range(60)), ", line 51: settings have at most 50", id="steps"),
        pytest.param(LAUGHS, "settings have at most 100,000 values", id="aliases of aliases"),
        pytest.param("a: 1\nb: 2\na: 3\n", ", line 3: a is there twice", id="twice"),
        pytest.param("a: 1\nyes: 2\n", ", line 2: a key must be text", id="key"),
        pytest.param("a: 1\n---\nb: 2\n", ", line 2: not YAML: expected a single document", id="two documents"),
        pytest.param("a: " + "9" * 5000, "has a number that cannot be read", id="digits"),
        pytest.param("a:\n  <<: 3\n", "for merging, but found scalar", id="merge"),
        pytest.param("a: \0\n", "it must be UTF-8 text, special characters are not allowed", id="zero byte"),
        pytest.param('a: 1\nb: ["\\ud800"]\n', ", line 2: it must be text that can be written", id="half a letter"),
        pytest.param('"\\ud800": 1\n', ", line 1: it must be text that can be written", id="half a letter's key"),
    ],
)
def test_what_is_no_file_of_settings_is_refused_in_a_line(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(Refused) as refused:
        read_config(file)
    assert f"--config {file}" in str(refused.value)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_file_that_is_not_there_or_not_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"none.yaml cannot be read: No such file"):
        read_config(tmp_path / "none.yaml")
    with pytest.raises(Refused, match="cannot be read: Is a directory"):
        read_config(tmp_path)
    (tmp_path / "bytes.yaml").write_bytes(b"a: \xff\xfe\n")
    with pytest.raises(Refused, match="bytes.yaml: not YAML: it must be UTF-8 text, .* at byte 3"):
        read_config(tmp_path / "bytes.yaml")


def test_dates_are_text_and_merges_are_followed(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text("# of today\na: 2026-11-25\nb: &b {x: 1}\nc:\n  <<: *b\n  y: 2\n", encoding="utf-8")
    assert read_config(file).settings == {"a": "2026-11-25", "b": {"x": 1}, "c": {"x": 1, "y": 2}}
    file.write_text("# nothing\n", encoding="utf-8")
    assert read_config(file).settings == {}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("prompt: [yes, no]", "line 3: prompt: input should be a valid string, got yes, which YAML reads as bool"),
        ("prompt: {p: no}", "line 3: prompt: input should be a valid string, got"),
        ("system: yes", "line 3: system: input should be a valid string, got yes, which YAML reads as bool"),
        ("id_column: 3", "line 3: id_column: input should be a valid string, got 3, which YAML reads as int"),
        ("prompt: null", "line 3: prompt: input should be a valid string, got null, which YAML reads as null"),
        ("keep: [url, 1.5]", "line 3: keep: input should be a valid string, got 1.5, which YAML reads as float"),
        ("limit: '5'", "line 3: limit: input should be a valid integer, got '5'"),
        ("limit: yes", "line 3: limit: input should be a valid integer, got yes, which YAML reads as bool\n"),
        ("limit: 1.0", "line 3: limit: input should be a valid integer, got 1.0, which YAML reads as float\n"),
        (
            "prompt: 3",
            "line 3: prompt: input should be a valid string, got 3, which YAML reads as int: text must be in ",
        ),
        ("dry_run: 1", "line 3: dry_run: input should be a valid boolean, got 1"),
        ("model: {a: b}", "line 3: model: input should be a valid string, got a mapping"),
        ("max-new-tokens: 1\nmax_new_tokens: 2", "line 4: max_new_tokens is there twice, with _ and with -"),
        ("temprature: 1", "line 3: temprature is no setting of caption; did you mean temperature?"),
    ],
)
def test_a_value_of_another_type_is_refused_by_its_key(tmp_path: Path, line: str, message: str, capsys) -> None:
    config = tmp_path / "job.yaml"
    config.write_text(f"input: {tmp_path}\noutput: {tmp_path}/out\n{line}\n", encoding="utf-8")
    assert main(["caption", "--config", str(config)]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: --config {config}, {message}")
    assert len(said.splitlines()) == 1


def test_a_setting_that_is_null_where_it_may_be_is_as_if_it_was_not_there(tmp_path: Path, capsys) -> None:
    source = write_parquet(tmp_path / "in.parquet", [good_row(0)])
    config = tmp_path / "job.yaml"
    config.write_text(
        f"input: {source}\noutput: {tmp_path}/out\nmodel: {checkpoint()}\nrevision: null\ndry-run: true\n"
        "prompt: {one: 'Yes or no?', two: 'B?'}\n",
        encoding="utf-8",
    )
    assert main(["caption", "--config", str(config)]) == 0
    shown = capsys.readouterr().err
    assert "one: 'Yes or no?'" in shown
    assert "two: 'B?'" in shown


def test_prompts_are_taken_from_files(tmp_path: Path, capsys) -> None:
    source = write_parquet(tmp_path / "in.parquet", [good_row(0)])
    (tmp_path / "long.txt").write_text("\ufeffWhat is  it?\nAnd why?\n", encoding="utf-8")
    flags = ["--input", str(source), "--output", str(tmp_path / "out"), "--model", str(checkpoint()), "--dry-run"]
    given = [f"a=@{tmp_path}/long.txt", "b=@@home", "c=me@home"]
    assert main(["caption", *flags, "--prompt", *given]) == 0
    shown = capsys.readouterr().err
    assert "a: 'What is  it?\\nAnd why?'" in shown
    assert "b: '@home'" in shown
    assert "c: 'me@home'" in shown
    assert main(["caption", *flags, "--prompt", f"@{tmp_path}/none.txt"]) == 2
    assert "none.txt: the file cannot be read: No such file" in capsys.readouterr().err
    (tmp_path / "empty.txt").write_text("\n", encoding="utf-8")
    assert main(["caption", *flags, "--prompt", f"@{tmp_path}/empty.txt"]) == 2
    assert "prompt must not be empty" in capsys.readouterr().err
