"""upload: what travels with a command."""

from pathlib import Path

import pytest

from jobs.upload import staged
from schemas.errors import Refused

JOB = ("caption", "--input", "s3://b/in", "--output", "s3://b/out", "--model", "m")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with files that a command may name."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "below").mkdir()
    for name in ("job.yaml", "q.txt", "t.jinja", "s.json", "below/q.txt"):
        (tmp_path / name).write_text(f"this is {name}")
    return tmp_path


def test_what_travels_is_small() -> None:
    with staged(JOB, demo=False) as (upload, arguments):
        files = [path for path in upload.folder.rglob("*") if path.is_file()]
        assert upload.num_bytes == sum(path.stat().st_size for path in files) < 4e6
        assert not [path for path in files if path.parts[-2] in ("__pycache__", ".venv", "tests", "model")]
        assert arguments == list(JOB)
    assert not upload.folder.exists()


@pytest.mark.parametrize("demo", [False, True])
def test_the_bundled_model_travels_where_it_is_asked_for(demo: bool) -> None:
    with staged(JOB, demo=demo) as (upload, _):
        assert (upload.folder / "demo" / "model" / "config.json").exists() == demo


@pytest.mark.parametrize(
    ("flags", "there", "file"),
    [
        pytest.param(("--config", "job.yaml"), ("--config", "submitted/job.yaml"), "job.yaml", id="config"),
        pytest.param(("--config=job.yaml",), ("--config=submitted/job.yaml",), "job.yaml", id="with ="),
        pytest.param(("--prompt", "a", "@q.txt"), ("--prompt", "a", "@submitted/q.txt"), "q.txt", id="prompt"),
        pytest.param(("--prompt=a=@q.txt",), ("--prompt=a=@submitted/q.txt",), "q.txt", id="prompt with name"),
        pytest.param(("--prompt", "a=@q.txt"), ("--prompt", "a=@submitted/q.txt"), "q.txt", id="a name apart"),
        pytest.param(
            ("--chat-template", "./t.jinja"), ("--chat-template", "submitted/t.jinja"), "t.jinja", id="template"
        ),
        pytest.param(("--json-schema", "s.json"), ("--json-schema", "submitted/s.json"), "s.json", id="schema"),
    ],
)
@pytest.mark.usefixtures("here")
def test_files_that_flags_name_travel(flags: tuple[str, ...], there: tuple[str, ...], file: str) -> None:
    with staged((*JOB, *flags), demo=False) as (upload, arguments):
        assert tuple(arguments) == (*JOB, *there)
        assert (upload.folder / "submitted" / file).read_text() == f"this is {file}"


def test_what_names_no_file_travels_as_it_is(here: Path) -> None:
    flags = ("--prompt", "@home?", "--system", "q.txt", "--json-schema", '{"type": "object"}' + " " * 5000)
    with staged((*JOB, *flags), demo=False) as (upload, arguments):
        assert tuple(arguments) == (*JOB, *flags)
        assert not (upload.folder / "submitted").exists()


@pytest.mark.usefixtures("here")
def test_two_files_of_one_name_are_both_there() -> None:
    with staged((*JOB, "--prompt", "@q.txt", "@below/q.txt"), demo=False) as (upload, arguments):
        texts = [(upload.folder / name.removeprefix("@")).read_text() for name in arguments[-2:]]
    assert texts == ["this is q.txt", "this is below/q.txt"]


def test_what_settings_name_is_there_under_its_own_name(here: Path) -> None:
    with staged(JOB, ["below/q.txt"], demo=False) as (upload, _):
        assert (upload.folder / "below/q.txt").read_text() == "this is below/q.txt"
    (here / "pyproject.toml").write_text("another")
    for name in ("pyproject.toml", "below/../q.txt"):
        with pytest.raises(Refused, match=f"not in the code's place, got {name}"), staged(JOB, [name], demo=False):
            pass


def test_other_contents_of_a_file_have_another_hash(here: Path) -> None:
    hashes = []
    for text in ("one", "two", "one"):
        (here / "q.txt").write_text(text)
        with staged((*JOB, "--prompt", "@q.txt"), demo=False) as (upload, _):
            hashes.append(upload.files_hash)
    assert hashes[0] == hashes[2] != hashes[1]
