"""LoRA adapters merged at load answer as a merged checkpoint does; all other kinds are refused by name."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig

from demo.checkpoint import Shape
from pipeline.engine.engine import Engine
from pipeline.engine.network.load import load_model
from pipeline.weights.proof import prove_adapter
from schemas.engine import EngineSettings
from schemas.errors import Refused
from tests.adapters import (
    ALPHA,
    ATTENTION,
    NEW,
    OLD,
    RANK,
    attention_pairs,
    pairs,
    weights_of,
    write_adapter,
    write_merged,
)
from tests.engine.oracle import FP32, Oracle, mixed_questions
from tests.tiny import build, checkpoint

TOWER = "vision_tower.encoder.layers.1.self_attn.out_proj"
PROJECTOR = "multi_modal_projector.linear_1"


def answers_of(model: Path, settings: EngineSettings) -> list[Any]:
    """Every number of three rows, each asked for once the one before is answered.

    bitsandbytes' 8 bits look for outliers in all rows of a product. Handed over together, rows would share one or not
    as threads have it.
    """
    oracle = Oracle(load_model(str(model), settings), str(checkpoint()))
    engine, rows = Engine(oracle.model, settings), map(oracle.sample, mixed_questions()[:3])
    return [(one.text, one.mean_logprob) for row in rows for one in engine.generate([row])]


def summed(tensors: dict[str, Tensor], module: str, weight: str, scale: float) -> dict[str, Tensor]:
    change = tensors[f"{module}.lora_B.weight"] @ tensors[f"{module}.lora_A.weight"]
    return {weight: weights_of(checkpoint())[weight] + change * scale}


def assert_same_weights(adapter: Path, merged: Path) -> None:
    found = load_model(str(checkpoint()), replace(FP32, adapter=str(adapter))).network.state_dict()
    wanted = load_model(str(merged), FP32).network.state_dict()
    plain = load_model(str(checkpoint()), FP32).network.state_dict()
    assert found.keys() == wanted.keys()
    assert [name for name in found if not torch.equal(found[name], wanted[name])] == []
    assert any(not torch.equal(found[name], plain[name]) for name in found)


@pytest.mark.parametrize("prefix", [pytest.param(NEW, id="layout of now"), pytest.param(OLD, id="layout of before")])
def test_answers_are_those_of_a_checkpoint_merged_by_hand(tmp_path: Path, prefix: str) -> None:
    tensors = attention_pairs(prefix)
    changed: dict[str, Tensor] = {}
    for name in ATTENTION:
        changed |= summed(tensors, prefix + name, f"language_model.model.{name}.weight", ALPHA / RANK)
    adapter = write_adapter(tmp_path / "adapter", tensors)
    merged = write_merged(tmp_path / "merged", changed)
    found = answers_of(checkpoint(), replace(FP32, adapter=str(adapter)))
    assert found == answers_of(merged, FP32)
    assert found != answers_of(checkpoint(), FP32)


@pytest.mark.parametrize(
    ("config", "rank", "scale"),
    [
        pytest.param({"use_rslora": True}, 4, ALPHA / 2, id="scaled by the root of the rank"),
        pytest.param({"rank_pattern": {"q_proj": 2}}, 2, ALPHA / 2, id="a rank of its own"),
        pytest.param({"rank_pattern": {"layers.0.self_attn.q_proj": 2}}, 2, ALPHA / 2, id="by a longer name"),
        pytest.param({"alpha_pattern": {r".*\.q_proj": 6}}, 4, 6 / 4, id="an alpha of its own"),
        pytest.param({"target_modules": "all-linear"}, 4, ALPHA / 4, id="all linear layers"),
        pytest.param({"target_modules": r".*layers\.0.*q_proj"}, 4, ALPHA / 4, id="a pattern"),
    ],
)
def test_the_scale_is_pefts(tmp_path: Path, config: dict[str, Any], rank: int, scale: float) -> None:
    module, weight = NEW + ATTENTION[0], f"language_model.model.{ATTENTION[0]}.weight"
    tensors = pairs({module: weight}, rank)
    adapter = write_adapter(tmp_path / "adapter", tensors, **{"target_modules": ["q_proj"], **config})
    assert_same_weights(adapter, write_merged(tmp_path / "merged", summed(tensors, module, weight, scale)))


def test_tower_and_projector_are_merged_as_well(tmp_path: Path) -> None:
    modules = {f"base_model.model.model.{name}": f"{name}.weight" for name in (TOWER, PROJECTOR)}
    tensors = pairs(modules)
    changed: dict[str, Tensor] = {}
    for module, weight in modules.items():
        changed |= summed(tensors, module, weight, ALPHA / RANK)
    adapter = write_adapter(tmp_path / "adapter", tensors, target_modules=["out_proj", "linear_1"])
    assert_same_weights(adapter, write_merged(tmp_path / "merged", changed))


def test_saved_modules_and_biases_replace_the_bases(tmp_path: Path) -> None:
    head = torch.randn(262, 64, generator=torch.Generator().manual_seed(1))
    bias = torch.randn(64, generator=torch.Generator().manual_seed(2))
    tensors = {
        **attention_pairs(),
        "base_model.model.lm_head.weight": head,
        f"base_model.model.model.{PROJECTOR}.base_layer.bias": bias,
    }
    changed = {"language_model.lm_head.weight": head, f"{PROJECTOR}.bias": bias}
    for name in ATTENTION:
        changed |= summed(tensors, NEW + name, f"language_model.model.{name}.weight", ALPHA / RANK)
    adapter = write_adapter(tmp_path / "adapter", tensors, modules_to_save=["lm_head"], bias="all")
    assert_same_weights(adapter, write_merged(tmp_path / "merged", changed))


@pytest.mark.parametrize("saved", [False, True])
def test_an_embedding_is_merged_the_other_way_round(tmp_path: Path, saved: bool) -> None:
    a, b, table = torch.randn(RANK, 262), torch.randn(64, RANK), torch.randn(262, 64)
    tensors = {f"{NEW}embed_tokens.lora_embedding_A": a, f"{NEW}embed_tokens.lora_embedding_B": b}
    name = "language_model.model.embed_tokens.weight"
    if saved:  # PEFT's `save_embedding_layers`
        tensors[f"{NEW}embed_tokens.base_layer.weight"] = table
    merged = {name: (table if saved else weights_of(checkpoint())[name]) + (b @ a * (ALPHA / RANK)).T}
    adapter = write_adapter(tmp_path / "adapter", tensors, target_modules=["embed_tokens"])
    assert_same_weights(adapter, write_merged(tmp_path / "merged", merged))


@pytest.mark.parametrize("bits", ["8bit", "4bit"])
def test_weights_are_merged_before_they_are_quantised(tmp_path: Path, bits: Any) -> None:
    tensors = attention_pairs()
    changed: dict[str, Tensor] = {}
    for name in ATTENTION:
        changed |= summed(tensors, NEW + name, f"language_model.model.{name}.weight", ALPHA / RANK)
    adapter = write_adapter(tmp_path / "adapter", tensors)
    settings = replace(FP32, quantize=bits)
    found = answers_of(checkpoint(), replace(settings, adapter=str(adapter)))
    assert found == answers_of(write_merged(tmp_path / "merged", changed), settings)


def refusal_of(adapter: Path, base: Path | None = None) -> str:
    config = AutoConfig.from_pretrained(base or checkpoint())
    with pytest.raises(Refused) as refused:
        list(prove_adapter(adapter, config, "base"))
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize(
    ("config", "word"),
    [
        pytest.param({"peft_type": "LOHA"}, "LOHA", id="LoHa"),
        pytest.param({"peft_type": "PROMPT_TUNING"}, "PROMPT_TUNING", id="prompt tuning"),
        pytest.param({"peft_type": None}, "no stated kind", id="none stated"),
        pytest.param({"use_dora": True}, "use_dora", id="DoRA"),
        pytest.param({"layer_replication": [[0, 2], [1, 2]]}, "layer_replication", id="layers twice"),
        pytest.param({"trainable_token_indices": [1]}, "trainable_token_indices", id="single tokens"),
        pytest.param({"of_next_year": "yes"}, "of_next_year", id="a kind that nobody knows yet"),
        pytest.param({"init_lora_weights": "pissa"}, "pissa", id="another base"),
        pytest.param({"r": 0}, "r=0", id="no rank"),
        pytest.param({"r": 8}, "(8, 64)", id="another rank"),
        pytest.param({"lora_alpha": "much"}, "much", id="no number"),
        pytest.param({"target_modules": ["q_proj", "o_proj"]}, "o_proj", id="a part is not there"),
        pytest.param({"modules_to_save": ["lm_head"]}, "lm_head", id="a saved module is not there"),
    ],
)
def test_other_adapters_are_refused_by_name(tmp_path: Path, config: dict[str, Any], word: str) -> None:
    assert word in refusal_of(write_adapter(tmp_path, attention_pairs(), **config))


@pytest.mark.parametrize(
    ("name", "shape", "word"),
    [
        pytest.param(f"{NEW}layers.7.self_attn.q_proj.lora_A.weight", (4, 64), "layers.7", id="no such layer"),
        pytest.param(f"{NEW}layers.1.mlp.up_proj.lora_A.weight", (4, 64), "an A and a B", id="no partner"),
        pytest.param(f"{NEW}layers.0.self_attn.q_proj.lora_B.weight", (65, 4), "(65, 4)", id="another shape"),
        pytest.param(f"{NEW}layers.0.self_attn.q_proj.lora_A.other.weight", (4, 64), "once", id="two adapters"),
        pytest.param(f"{NEW}layers.0.self_attn.q_proj.lora_magnitude_vector", (64,), "magnitude", id="DoRA's tensor"),
        pytest.param("base_model.model.lm_head.weight", (270, 64), "(270, 64)", id="a larger vocabulary"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(tmp_path: Path, name: str, shape: tuple[int, ...], word: str) -> None:
    assert word in refusal_of(write_adapter(tmp_path, {**attention_pairs(), name: torch.zeros(shape)}))


def test_numbers_that_are_no_floats_are_refused(tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path, attention_pairs())
    tensors = load_file(adapter / "adapter_model.safetensors")
    save_file({name: tensor.to(torch.int8) for name, tensor in tensors.items()}, adapter / "adapter_model.safetensors")
    assert "I8" in refusal_of(adapter)


@pytest.mark.parametrize("file", ["adapter_model.bin", "non_lora_trainables.bin"])
def test_a_pickle_beside_an_adapter_is_refused(tmp_path: Path, file: str) -> None:
    adapter = write_adapter(tmp_path, attention_pairs())
    (adapter / file).write_bytes(b"")
    assert file in refusal_of(adapter)


def test_a_larger_base_refuses_the_adapter(tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path, attention_pairs())
    assert "must be (4, 96)" in refusal_of(adapter, build(Shape(text_width=96, text_heads=6)))
