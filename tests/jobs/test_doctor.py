"""doctor and init: what a machine lacks is named with the command that mends it; a file to begin with is taken."""

import compileall
import sys
from pathlib import Path

import pytest
import yaml

from jobs.__main__ import main
from pipeline.doctor import NO_OUTPUT, Finding, bytecode, examine, open_files
from schemas.job import JobSettings
from tests.inputs import good_row, write_parquet
from tests.tiny import checkpoint


def findings(**settings: object) -> dict[str, Finding]:
    base = {"input": ("none",), "output": NO_OUTPUT}
    return {one.name: one for one in examine(JobSettings.model_validate({**base, **settings}))}


def test_the_projects_own_packages_are_in_order_here() -> None:
    found = findings()
    assert {"python", "torch", "ray", "transformers", "cards", "/dev/shm", "open files"} <= found.keys()
    assert [one for one in found.values() if one.state == "fail"] == []


def test_what_is_not_in_order_has_what_mends_it() -> None:
    assert all(one.mend for one in findings(gpus=0).values() if one.state != "ok")


@pytest.mark.parametrize(
    ("settings", "name", "mend"),
    [
        pytest.param(
            {"attention": "flash_attention_2"},
            "flash-attn",
            "pip install flash-attn --no-build-isolation",
            id="package",
        ),
        pytest.param({"gpus": 4096}, "cards", "nvidia-smi", id="no cards"),
        pytest.param({"input": ("no/such/folder",)}, "input", "ls", id="input"),
        pytest.param({"model": "no such model"}, "model", "check-model", id="model"),
    ],
)
def test_what_the_settings_need_is_looked_at(settings: dict[str, object], name: str, mend: str) -> None:
    found = findings(**settings)[name]
    assert found.state == "fail"
    assert found.mend is not None
    assert mend in found.mend


@pytest.mark.parametrize(
    ("soft", "hard", "state", "mend"),
    [
        pytest.param(65536, 1048576, "ok", "", id="enough"),
        pytest.param(1024, 1048576, "look", "ulimit -n 65536  # Ray needs many", id="raised by anybody"),
        pytest.param(1024, -1, "look", "ulimit -n 65536  # Ray needs many", id="hard without a limit"),
        pytest.param(-1, -1, "ok", "", id="no limit"),
        pytest.param(8192, 8192, "ok", "", id="few, but all that there are"),
        pytest.param(1024, 8192, "look", "ulimit -n 8192  # Ray needs many", id="as far as it goes"),
        pytest.param(1024, 2048, "look", "ulimit -n 2048  # Ray needs many; docker run", id="both"),
        pytest.param(1024, 1024, "look", "docker run --ulimit nofile=65536", id="raised by root alone"),
    ],
)
def test_open_files_are_mended_by_who_can(soft: int, hard: int, state: str, mend: str) -> None:
    found = open_files(soft, hard)
    assert (found.state, (found.mend or "").startswith(mend), bool(found.mend)) == (state, True, bool(mend))


def test_packages_without_bytecode_that_no_worker_may_write_are_named(tmp_path: Path, monkeypatch) -> None:
    library = tmp_path / "the library"
    (library / "heavy_one").mkdir(parents=True)
    (library / "heavy_one" / "__init__.py").write_text("ANSWER = 42\n")
    monkeypatch.syspath_prepend(str(library))
    monkeypatch.setattr(sys, "pycache_prefix", None)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    found = bytecode("heavy_one")
    assert (found.state, found.mend) == (
        "look",
        f"python -m compileall -q -j 0 '{library}'  # as the packages' owner",
    )
    assert "PYTHONDONTWRITEBYTECODE is set" in found.found
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    assert bytecode("heavy_one").found == "heavy_one's is written by the first worker"
    assert compileall.compile_dir(library, quiet=1)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    assert bytecode("heavy_one") == Finding(name="bytecode", state="ok", found="heavy_one's is there")


def test_an_output_that_cannot_be_made_fails(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    found = findings(output=str(tmp_path / "file" / "out"))["output"]
    assert found.state == "fail"
    assert "is in the way" in found.found
    assert findings(output=str(tmp_path / "new"))["output"].state == "ok"


def test_a_cluster_that_is_not_there_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    assert findings()["ray"].state == "fail"


def test_the_status_is_1_where_something_must_be_mended(capsys) -> None:
    assert main(["doctor", "--attention", "flash_attention_2"]) == 1
    shown = capsys.readouterr().out
    assert "fail  flash-attn" in shown
    assert shown.endswith("1 of these must be mended\n")


@pytest.mark.parametrize("job", ["caption", "ocr"])
def test_the_job_takes_the_file_that_init_writes(job: str, tmp_path: Path, capsys) -> None:
    source, config = write_parquet(tmp_path / "in.parquet", [good_row(0)]), tmp_path / "job.yaml"
    written = ["--to", str(config), "--input", str(source), "--output", str(tmp_path / "out")]
    assert main(["init", job, *written, "--model", str(checkpoint())]) == 0
    assert main([job, "--config", str(config), "--prompt-column", "", "--dry-run"]) == 0
    assert "1 row of 1 parquet" in capsys.readouterr().err


def test_every_setting_behind_its_mark_is_taken_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["init", "caption"]) == 0
    text = (tmp_path / "caption.yaml").read_text(encoding="utf-8")
    lines = [line.removeprefix("# ") for line in text.splitlines()]
    settings = yaml.safe_load("\n".join(line for line in lines if line.split(":")[0] in JobSettings.model_fields))
    assert settings.keys() == JobSettings.model_fields.keys()
    JobSettings.model_validate({name: value for name, value in settings.items() if value is not None})


def test_a_sweep_of_the_file_that_init_writes_is_read(tmp_path: Path) -> None:
    from jobs.sweep import read_settings

    assert main(["init", "sweep", "--to", str(tmp_path / "sweep.yaml"), "--output", str(tmp_path)]) == 0
    assert list(read_settings(tmp_path / "sweep.yaml", {}).benchmarks) == ["shapes", "present", "lines"]


def test_a_file_that_is_there_is_not_written_over(tmp_path: Path, capsys) -> None:
    there = tmp_path / "job.yaml"
    there.write_text("mine")
    assert main(["init", "caption", "--to", str(there)]) == 2
    assert main(["init", "caption", "--to", str(tmp_path / "no" / "job.yaml")]) == 2
    assert there.read_text() == "mine"
    assert "is there already, and is not written over" in capsys.readouterr().err


def test_doctor_takes_the_file_of_a_job(tmp_path: Path, capsys) -> None:
    (tmp_path / "job.yaml").write_text(f"input: {tmp_path}\noutput: {tmp_path}/out\nprompt: What?\n")
    assert main(["doctor", "--config", str(tmp_path / "job.yaml")]) == 0
    assert f"{tmp_path} is there" in capsys.readouterr().out


def test_an_output_that_is_a_link_to_what_is_not_there_yet_has_a_disk(tmp_path: Path) -> None:
    (tmp_path / "out").symlink_to(tmp_path / "not" / "there" / "yet")
    assert findings(output=str(tmp_path / "out"))["disk (output)"].found.endswith(f" GB free at {tmp_path}/out")
