"""What an engine refuses before it loads anything."""

import json
import shutil

import pytest
from transformers import LlamaConfig, MistralConfig, Qwen2Config

from pipeline.engine.engine import Engine
from pipeline.engine.network.decoder import decoder_shape
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
        ("slots", 0),
        ("pages", 0),
        ("capacity", -1),
        ("bucket", 0),
        ("bucket", 24),
        ("prefill_tokens", 0),
        ("quantize", "int8"),
        ("kv_cache_dtype", "fp8"),
        ("decode_kernel", "flash"),
        ("decode_kernel", "triton"),
        ("prefill_kernels", "flash"),
        ("prefill_kernels", "cute"),
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


def test_a_capacity_beyond_the_models_context_is_refused() -> None:
    with pytest.raises(ValueError, match="capacity must be at most the model's 1024 tokens, got 2000"):
        Engine.load(str(checkpoint()), settings=EngineSettings(capacity=2000))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden_act": "gelu"}, "hidden_act must be silu, got 'gelu'"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}, "rope_type must be one of"),
        (
            {
                "rope_parameters": {
                    "rope_type": "linear",
                    "factor": 2.0,
                    "rope_theta": 1e4,
                    "partial_rotary_factor": 0.5,
                }
            },
            "partial_rotary_factor must be 1 with rope_type linear, got 0.5",
        ),
    ],
)
def test_a_text_network_that_the_decoder_is_not_is_refused(fields, message) -> None:
    with pytest.raises(ValueError, match=message):
        decoder_shape(LlamaConfig(**fields))


def test_a_slot_holds_no_more_than_attention_reaches_back() -> None:
    shape = decoder_shape(MistralConfig(sliding_window=512))
    assert (shape.window, decoder_shape(Qwen2Config(use_sliding_window=False)).window) == (512, None)
