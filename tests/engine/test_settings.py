"""What an engine refuses before it loads anything."""

import json
import shutil

import pytest

from pipeline.engine.engine import Engine
from schemas.engine import EngineSettings, Sampling
from tests.tiny import checkpoint


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("top_k", -1),
        ("repetition_penalty", 0.0),
        ("min_new_tokens", -1),
        ("stop", "."),
        ("stop", ("", "a")),
        ("seed", -1),
    ],
)
def test_a_bad_sampling_value_is_refused_by_name_and_value(field, value) -> None:
    with pytest.raises(ValueError, match=rf"^{field} must be .*got "):
        Sampling(**{field: value})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("dtype", "int8"),
        ("device", "gpu"),
        ("attention", "flash"),
        ("batch_size", 0),
        ("look_ahead", 0),
        ("tiles_per_call", 0),
    ],
)
def test_a_bad_engine_value_is_refused_by_name_and_value(field, value) -> None:
    with pytest.raises(ValueError, match=rf"^{field} must be .*got "):
        EngineSettings(**{field: value})


def test_a_model_of_another_kind_is_refused(tmp_path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(ValueError, match="must be a LLaVA-NeXT checkpoint .* is 'llama'"):
        Engine.load(str(tmp_path), settings=EngineSettings())


def test_a_folder_without_safetensors_is_refused(tmp_path) -> None:
    shutil.copytree(checkpoint(), tmp_path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.safetensors"))
    (tmp_path / "pytest_model.bin").touch()
    with pytest.raises(OSError, match="safetensors"):
        Engine.load(str(tmp_path), settings=EngineSettings())
