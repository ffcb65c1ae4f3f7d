"""A checkpoint has what its config's network needs, no more and no less, in every layout that is published."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForImageTextToText

from demo.checkpoint import Shape
from pipeline.engine.network.load import load_model
from pipeline.engine.reference.load import load_reference
from pipeline.weights.headers import SINGLE
from pipeline.weights.proof import check_loaded, prove_checkpoint
from schemas.errors import Refused
from tests.engine.oracle import FP32
from tests.published import PUBLISHED, Published
from tests.tiny import build, checkpoint

Weights = dict[str, Tensor]
UP = "language_model.model.layers.0.mlp.up_proj.weight"


def prove(folder: Path) -> None:
    prove_checkpoint(str(folder), AutoConfig.from_pretrained(folder))


def refusal_of(folder: Path) -> str:
    with pytest.raises(Refused) as refused:
        prove(folder)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def changed(folder: Path, change: Callable[[Weights], Any], **config: Any) -> Path:
    """A copy of the tiny checkpoint with other weights, and another config."""
    shutil.copytree(checkpoint(), folder)
    weights = load_file(folder / SINGLE)
    change(weights)
    save_file(weights, folder / SINGLE, {"format": "pt"})
    edit_config(folder, **config)
    return folder


def edit_config(folder: Path, **changes: Any) -> None:
    """Change config.json, a part of it where a dict is given."""
    config = json.loads((folder / "config.json").read_text())
    for name, value in changes.items():
        config[name] = {**config[name], **value} if isinstance(value, dict) and name in config else value
    (folder / "config.json").write_text(json.dumps(config))


def drop(*words: str) -> Callable[[Weights], None]:
    def change(weights: Weights) -> None:
        for name in [name for name in weights if any(word in name for word in words)]:
            del weights[name]

    return change


def add(**tensors: Tensor) -> Callable[[Weights], None]:
    return lambda weights: weights.update({name.replace("__", "."): one for name, one in tensors.items()})


@pytest.mark.parametrize("backbone", ["llama", "mistral", "qwen2"])
def test_whole_checkpoints_pass(backbone: Any) -> None:
    prove(checkpoint(backbone))


def rename(weights: Weights, *rules: tuple[str, str]) -> None:
    for name in list(weights):
        new = name
        for old, other in rules:
            new = other + new.removeprefix(old) if new.startswith(old) else new
        weights[new] = weights.pop(name)


@pytest.mark.parametrize(
    "rules",
    [
        pytest.param((), id="as saved now"),
        pytest.param((("vision_tower.", "vision_tower.vision_model."),), id="as the hub has them"),
        pytest.param(
            (
                ("language_model.model.", "model.language_model."),
                ("language_model.lm_head", "lm_head"),
                ("vision_tower.", "model.vision_tower.vision_model."),
                ("multi_modal_projector", "model.multi_modal_projector"),
                ("image_newline", "model.image_newline"),
            ),
            id="as saved in between",
        ),
    ],
)
def test_every_published_layout_passes_and_loads(tmp_path: Path, rules: tuple[tuple[str, str], ...]) -> None:
    folder = changed(tmp_path / "m", lambda weights: rename(weights, *rules))
    prove(folder)
    _, report = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
    check_loaded(report, AutoConfig.from_pretrained(folder), str(folder))


@pytest.mark.parametrize(
    ("word", "named"),
    [
        ("multi_modal_projector", "model.multi_modal_projector.linear_1.weight (64, 32) is missing (and 3 more)"),
        ("language_model.model.layers.1.", "layers.1."),
        ("image_newline", "model.image_newline (64) is missing"),
        ("linear_2.bias", "model.multi_modal_projector.linear_2.bias (64) is missing"),
        ("lm_head", "lm_head.weight (262, 64) is missing"),
        ("language_model.model.norm", "model.language_model.norm.weight (64) is missing"),
        ("vision_tower.encoder.layers.0.mlp.fc1.bias", "fc1.bias (128) is missing"),
        ("pre_layrnorm", "pre_layrnorm"),
        ("e", "is missing"),
    ],
)
def test_a_missing_tensor_is_named_with_its_shape(tmp_path: Path, word: str, named: str) -> None:
    assert named in refusal_of(changed(tmp_path / "m", drop(word)))


def test_a_tied_head_may_be_missing_and_both_ends_may_not(tmp_path: Path) -> None:
    tied = {"tie_word_embeddings": True, "text_config": {"tie_word_embeddings": True}}
    for number, words in enumerate([("lm_head",), ("embed_tokens",), ()]):
        prove(changed(tmp_path / str(number), drop(*words) if words else dict, **tied))
    message = refusal_of(changed(tmp_path / "m", drop("lm_head", "embed_tokens"), **tied))
    assert "is missing (and 1 more)" in message


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(drop("vision_tower.encoder.layers.2.", "post_layernorm"), id="layers behind the features"),
        pytest.param(add(vision_tower__encoder__layers__9__mlp__fc1__bias=torch.zeros(3)), id="more layers of a tower"),
        pytest.param(add(vision_tower__vision_model__embeddings__position_ids=torch.zeros(1, 17)), id="positions"),
        pytest.param(
            add(language_model__model__layers__0__self_attn__rotary_emb__inv_freq=torch.zeros(8)), id="frequencies"
        ),
        pytest.param(lambda weights: weights.update({n: w.half() for n, w in weights.items()}), id="float16"),
    ],
)
def test_what_no_answer_depends_on_is_not_refused(tmp_path: Path, change: Callable[[Weights], Any]) -> None:
    folder = changed(tmp_path / "m", change)
    prove(folder)
    _, report = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
    check_loaded(report, AutoConfig.from_pretrained(folder), str(folder))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        pytest.param(
            add(language_model__model__layers__2__mlp__up_proj__weight=torch.zeros(192, 64)),
            "the config has no text layer 2",
            id="a layer too many",
        ),
        pytest.param(add(v_head__weight=torch.zeros(1)), "v_head.weight (1)", id="a head that nobody knows"),
        pytest.param(add(lm_head__weight=torch.zeros(262, 64)), "must be there once", id="two layouts"),
        pytest.param(
            add(language_model__model__layers__0__self_attn__q_proj__lora_A__weight=torch.zeros(4, 64)),
            "lora_A",
            id="an adapter not merged",
        ),
        pytest.param(
            add(language_model__model__layers__0__self_attn__q_proj__lora_A__default__weight=torch.zeros(4, 64)),
            "q_proj.lora_A.default.weight in model.safetensors is of an adapter that is not merged",
            id="an adapter not merged, named",
        ),
        pytest.param(
            lambda weights: rename(weights, (UP, UP.replace(".weight", ".base_layer.weight"))),
            "up_proj.base_layer.weight in model.safetensors is of an adapter that is not merged",
            id="a layer inside an adapter",
        ),
        pytest.param(
            add(language_model__model__layers__0__mlp__up_proj__weight_scale=torch.zeros(192, 1)),
            "up_proj.weight_scale (192, 1) in model.safetensors is one too many, the network has no such tensor",
            id="a scale of weights that are not packed",
        ),
        pytest.param(
            lambda weights: rename(weights, ("", "module.")),
            "must be image_newline: save the model itself",
            id="saved with what was around it",
        ),
        pytest.param(
            lambda weights: weights.update(image_newline=torch.zeros(64, dtype=torch.int64)), "I64", id="integers"
        ),
    ],
)
def test_tensors_that_have_no_place_are_named(tmp_path: Path, change: Callable[[Weights], Any], named: str) -> None:
    assert named in refusal_of(changed(tmp_path / "m", change))


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"text_config": {"vocab_size": 300}}, "embed_tokens.weight must be (300, 64), it is (262, 64)"),
        ({"text_config": {"vocab_size": 200}}, "embed_tokens.weight must be (200, 64), it is (262, 64)"),
        ({"text_config": {"num_hidden_layers": 1}}, "the config has no text layer 1"),
        ({"text_config": {"num_hidden_layers": 3}}, "layers.2."),
        ({"text_config": {"intermediate_size": 200}}, "(200, 64)"),
        ({"text_config": {"num_key_value_heads": 4}}, "k_proj"),
        ({"vision_config": {"hidden_size": 64}}, "vision_tower"),
        ({"vision_config": {"image_size": 84}}, "position_embedding"),
        ({"multimodal_projector_bias": False}, "linear_1.bias"),
    ],
)
def test_a_config_that_differs_is_refused_with_both_shapes(tmp_path: Path, config: dict[str, Any], named: str) -> None:
    assert named in refusal_of(changed(tmp_path / "m", dict, **config))


@pytest.mark.parametrize("published", [pytest.param(one, id=one.name) for one in PUBLISHED])
def test_a_published_config_passes_with_the_hubs_names(published: Published, tmp_path: Path) -> None:
    """Of whole size, the files all hole."""
    (tmp_path / "config.json").write_text(json.dumps(published.config(shrunk=False)))
    config = AutoConfig.from_pretrained(tmp_path)
    with torch.device("meta"):
        state = AutoModelForImageTextToText.from_config(config).state_dict()
    header: dict[str, Any] = {}
    at = 0
    for name, tensor in state.items():
        named = name.removeprefix("model.").replace("language_model.", "language_model.model.")
        named = named.replace("vision_tower.", "vision_tower.vision_model.").replace(
            "lm_head", "language_model.lm_head"
        )
        header[named] = {"dtype": "F16", "shape": list(tensor.shape), "data_offsets": [at, at + 2 * tensor.numel()]}
        at += 2 * tensor.numel()
    packed = json.dumps(header).encode()
    with (tmp_path / SINGLE).open("wb") as file:
        file.write(len(packed).to_bytes(8, "little") + packed)
        file.truncate(8 + len(packed) + at)
    prove(tmp_path)
    edit_config(tmp_path, text_config={"num_hidden_layers": published.text["num_hidden_layers"] + 1})
    assert "is missing (and 8 more)" in refusal_of(tmp_path) or published.text["model_type"] == "qwen2"


@pytest.mark.parametrize(
    "wish", [{"attn_implementation": "flash_attention_2"}, {"output_attentions": True, "output_hidden_states": True}]
)
def test_how_a_config_wants_its_network_run_is_the_jobs_matter(tmp_path: Path, wish: dict[str, Any]) -> None:
    folder = changed(tmp_path / "m", dict, **wish)
    prove(folder)
    for load in (load_model, load_reference):
        config: Any = load(str(folder), FP32).network.config
        assert (config._attn_implementation, config.output_attentions) == ("sdpa", False)


@pytest.mark.parametrize("bits", ["8bit", "4bit"])
def test_bitsandbytes_own_tensors_pass_and_a_layer_less_does_not(tmp_path: Path, bits: Any) -> None:
    network = load_model(str(checkpoint()), replace(FP32, quantize=bits)).network
    network.save_pretrained(tmp_path)
    prove(tmp_path)
    weights = load_file(tmp_path / SINGLE)
    drop("layers.1.mlp.up_proj.")(weights)
    save_file(weights, tmp_path / SINGLE, {"format": "pt"})
    assert "layers.1.mlp.up_proj.weight (192, 64) is missing" in refusal_of(tmp_path)


@pytest.mark.parametrize(
    "method",
    [
        pytest.param({"quant_method": "bitsandbytes", "load_in_4bit": True}, id="4 bits"),
        pytest.param({"quant_method": "gptq", "bits": 4}, id="gptq"),
    ],
)
@pytest.mark.parametrize("place", ["config", "text_config"])
def test_plain_weights_that_the_config_calls_packed_are_refused(tmp_path: Path, method: Any, place: str) -> None:
    """As a merge into a base in 16 bits leaves the training's config behind."""
    told = {"quantization_config": method}
    folder = changed(tmp_path / "m", dict, **({place: told} if place == "text_config" else told))
    assert "must hold packed weights" in refusal_of(folder)
    assert "take quantization_config out" in refusal_of(folder)


def test_a_load_that_made_weights_up_or_left_some_over_is_refused() -> None:
    config = AutoConfig.from_pretrained(build(Shape()))
    whole: dict[str, Any] = {
        "missing_keys": set(),
        "unexpected_keys": set(),
        "mismatched_keys": set(),
        "error_msgs": [],
    }
    check_loaded({**whole, "missing_keys": {"model.vision_tower.post_layernorm.bias"}}, config, "m")
    for broken in (
        {"missing_keys": {"model.image_newline", "lm_head.weight"}},
        {"unexpected_keys": {"model.language_model.layers.9.mlp.up_proj.weight"}},
        {"mismatched_keys": {("lm_head.weight", (1, 2), (2, 1))}},
        {"error_msgs": ["size\nmismatch"]},
    ):
        with pytest.raises(Refused, match="m must load as a whole"):
            check_loaded({**whole, **broken}, config, "m")
