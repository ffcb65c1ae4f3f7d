"""What proves a checkpoint, and what a broken one is refused with."""

import shutil
from pathlib import Path

import pytest

from jobs.__main__ import main
from pipeline.checkpoint import pin
from tests.inputs import good_row, write_parquet
from tests.tiny import checkpoint


def copy_of(folder: Path) -> Path:
    return Path(shutil.copytree(checkpoint(), folder / "model"))


def test_weights_that_changed_are_another_checkpoint(tmp_path: Path) -> None:
    model = copy_of(tmp_path)
    before = pin(str(model), None)
    weights = bytearray((model / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (model / "model.safetensors").write_bytes(weights)
    after = pin(str(model), None)
    assert before == pin(str(checkpoint()), None)
    assert {name for name in after.files if after.files[name] != before.files[name]} == {"model.safetensors"}


@pytest.mark.parametrize("keep", [pytest.param(share, id=f"{share:.0%} of it") for share in (0.0, 0.001, 0.5, 0.999)])
def test_a_torn_weights_file_is_named_before_anything_starts(tmp_path: Path, keep: float, capsys) -> None:
    weights = copy_of(tmp_path) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[: int(keep * weights.stat().st_size)])
    source = write_parquet(tmp_path / "in.parquet", [good_row(0)])
    job = ["caption", "--input", str(source), "--output", str(tmp_path / "out"), "--model", str(tmp_path / "model")]
    assert main(job) == 2
    assert f"error: {weights} must " in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
