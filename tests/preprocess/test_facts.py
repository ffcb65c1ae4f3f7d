"""What a checkpoint's own files say is proven against its network before a row is read."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig, MistralConfig, PreTrainedConfig, Qwen2Config

from pipeline.preprocess.facts import attention_window, read_facts, with_image_tokens
from pipeline.preprocess.files import load_processor
from pipeline.preprocess.image import ImageLimits
from pipeline.preprocess.preprocessor import Preprocessor
from schemas.errors import Refused
from tests.checkpoints import changed, copied, edit, with_tokens, written
from tests.tiny import checkpoint


def load(folder: Path) -> Preprocessor:
    return Preprocessor.load(str(folder), None, ImageLimits(), max_new_tokens=8)


def config(**changes: Any) -> Path:
    return changed("config.json", lambda content: content.update(changes))


def text_config(**changes: Any) -> Path:
    return changed("config.json", lambda content: content["text_config"].update(changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param({"image_token_index": 9999}, "image_token_index must be a token .* 262 rows, got 9999", id="far"),
        pytest.param({"image_token_index": 262}, "image_token_index must be a token .* 262 rows, got 262", id="next"),
        pytest.param({"image_token_index": -200}, "image_token_index must be a token .* got -200", id="LLaVA's own"),
        pytest.param({"image_token_index": 7}, "image_token '<image>', which is 2, got 7", id="another token"),
        pytest.param({"image_token_index": "2"}, "must be a checkpoint's folder .*'image_token_index'", id="a text"),
        pytest.param({"vision_feature_layer": 4}, "between -4 and 3, .* has 3 layers, got 4", id="layer"),
        pytest.param({"vision_feature_layer": -5}, "between -4 and 3, .* has 3 layers, got -5", id="negative layer"),
        pytest.param({"vision_feature_layer": [-2, 9]}, r"between -4 and 3, .* got \[-2, 9\]", id="one of two layers"),
        pytest.param({"vision_feature_layer": []}, r"vision_feature_layer must be .* got \[\]", id="no layer"),
        pytest.param({"image_grid_pinpoints": [[56]]}, r"must be pairs of height and width, got \[56\]", id="grids"),
    ],
)
def test_a_config_that_does_not_suit_its_network_is_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(Refused, match=message):
        load(config(**changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param({"image_size": [56, 56]}, r"image_size must be one whole number, got \[56, 56\]", id="tiles"),
        pytest.param({"patch_size": [14, 14]}, r"patch_size must be one whole number, got \[14, 14\]", id="patches"),
        pytest.param({"image_size": None}, "image_size must be one whole number, got None", id="no size"),
    ],
)
def test_tiles_and_patches_that_are_not_one_number_are_refused_by_name(changes: dict[str, Any], message: str) -> None:
    folder = changed("config.json", lambda content: content["vision_config"].update(changes))
    with pytest.raises(Refused, match=f"the vision tower's {message}"):
        read_facts(str(folder), None)


OWN_CODE = {"mm_vision_tower": "openai/clip-vit-large-patch14-336", "image_grid_pinpoints": [[336, 672]]}


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        pytest.param(
            {"model_type": "llava_mistral", "hidden_size": 4096, "intermediate_size": 14336},
            "take llava-hf/llava-v1.6-mistral-7b-hf, or convert it by transformers' convert_llava_next",
            id="mistral",
        ),
        pytest.param(
            {"model_type": "llava", "architectures": ["LlavaLlamaForCausalLM"], "hidden_size": 5120}
            | {"intermediate_size": 13824},
            "take llava-hf/llava-v1.6-vicuna-13b-hf",
            id="a type that transformers has as well",
        ),
        pytest.param(
            {"model_type": "llava_qwen", "hidden_size": 8192, "intermediate_size": 49152},
            "take llava-hf/llava-next-110b-hf",
            id="qwen",
        ),
        pytest.param({"model_type": "llava_gemma"}, r"take llava-hf/llava-v1.6-\*-hf", id="another"),
        pytest.param(
            {"model_type": "llava_llama", "image_grid_pinpoints": None},
            r"\(llava_next\), it is in that of LLaVA's own code \(llava_llama\) and knows no grids of tiles",
            id="LLaVA-1.5",
        ),
    ],
)
def test_a_checkpoint_of_llavas_own_code_is_told_its_conversion(stated: dict[str, Any], message: str) -> None:
    with pytest.raises(Refused, match=message) as caught:
        read_facts(str(written("config.json", json.dumps({**OWN_CODE, **stated}))), None)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("layer", [-4, 3, 0, [-2, 1]], ids=str)
def test_every_layer_of_the_tower_can_be_taken(layer: int | list[int]) -> None:
    assert load(config(vision_feature_layer=layer)).facts.context == 1024


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        pytest.param({"eos_token_id": [1, 262]}, "eos_token_id must be a token .* 262 rows, got 262", id="behind"),
        pytest.param({"eos_token_id": -1}, "eos_token_id must be a token .* got -1", id="negative"),
        pytest.param({"eos_token_id": "1"}, "eos_token_id must be a token's id or a list of them, got '1'", id="text"),
        pytest.param({"pad_token_id": 1.5}, "pad_token_id must be a token's id .* got 1.5", id="pad"),
    ],
)
def test_tokens_of_the_generation_config_are_tokens_of_the_network(stated: dict[str, Any], message: str) -> None:
    with pytest.raises(Refused, match=message):
        load(changed("generation_config.json", lambda content: content.update(stated)))


@pytest.mark.parametrize("content", ['{"eos_token_id": [1, 4', "[]", "", "\x00"])
def test_a_broken_generation_config_is_named(content: str) -> None:
    with pytest.raises(Refused, match="generation_config.json of model .* must be whole"):
        load(written("generation_config.json", content))


def test_without_a_generation_config_the_text_config_says_what_ends_an_answer() -> None:
    folder = text_config(eos_token_id=4)
    (folder / "generation_config.json").unlink()
    assert read_facts(str(folder), None).eos_token_ids == (4,)


def test_a_padding_token_that_the_table_has_not_got_is_refused() -> None:
    with pytest.raises(Refused, match="pad_token_id must be a token .* 262 rows, got 262"):
        load(text_config(pad_token_id=262))


@pytest.mark.parametrize(
    ("file", "content"),
    [
        pytest.param("tokenizer.json", None, id="no tokenizer"),
        pytest.param("tokenizer.json", '{"version"', id="half of a tokenizer"),
        pytest.param("tokenizer.json", "[1]", id="a list for a tokenizer"),
        pytest.param("tokenizer_config.json", "{", id="half of a tokenizer's config"),
        pytest.param("processor_config.json", "[]", id="a list for a processor's config"),
        pytest.param("chat_template.json", "{", id="half of a chat template"),
    ],
)
def test_a_tokenizer_or_processor_that_cannot_be_read_is_refused_in_one_line(file: str, content: str | None) -> None:
    folder = copied()
    (folder / file).unlink(missing_ok=True)
    if content is not None:
        (folder / file).write_text(content)
    with pytest.raises(Refused, match="must have a tokenizer and a processor config") as caught:
        load_processor(str(folder), None)
    assert "\n" not in str(caught.value)


def test_a_tokenizer_of_a_kind_that_nobody_knows_is_refused() -> None:
    folder = changed("tokenizer.json", lambda tokenizer: tokenizer["model"].update(type="BPEv9"))
    with pytest.raises(Refused, match="must have a tokenizer and a processor config that can be read"):
        load_processor(str(folder), None)


def test_an_image_token_behind_the_embedding_table_is_refused() -> None:
    folder = with_tokens("<image2>", special=True)
    for file in ("tokenizer_config.json", "processor_config.json"):
        edit(folder / file, lambda content: content.update(image_token="<image2>"))
    edit(folder / "config.json", lambda content: content.update(image_token_index=262))
    with pytest.raises(Refused, match="image_token_index must be a token .* 262 rows, got 262"):
        load(folder)


def test_a_checkpoint_in_which_nothing_ends_an_answer_is_refused() -> None:
    folder = text_config(eos_token_id=None)
    edit(folder / "generation_config.json", lambda content: content.pop("eos_token_id"))
    edit(folder / "tokenizer_config.json", lambda content: content.pop("eos_token"))
    with pytest.raises(Refused, match="the checkpoint must name an eos_token_id"):
        load(folder)


@pytest.mark.parametrize(
    ("text", "window"),
    [
        pytest.param(MistralConfig(sliding_window=8), 8, id="mistral"),
        pytest.param(MistralConfig(sliding_window=None), None, id="mistral without"),
        pytest.param(Qwen2Config(sliding_window=8, use_sliding_window=False), None, id="qwen2, not used"),
        pytest.param(
            Qwen2Config(sliding_window=8, use_sliding_window=True, num_hidden_layers=4, max_window_layers=2),
            8,
            id="qwen2, from the third layer on",
        ),
        pytest.param(
            Qwen2Config(sliding_window=8, use_sliding_window=True, num_hidden_layers=4, max_window_layers=4),
            None,
            id="qwen2, behind its last layer",
        ),
        pytest.param(LlamaConfig(sliding_window=8), None, id="llama knows of none"),
    ],
)
def test_a_window_is_what_transformers_takes_it_for(text: PreTrainedConfig, window: int | None) -> None:
    assert attention_window(text) == window


def test_a_window_is_the_context_of_a_prompt_and_its_answer() -> None:
    folder = copied(checkpoint("mistral"))
    edit(folder / "config.json", lambda content: content["text_config"].update(sliding_window=40))
    assert load(folder).facts.context == 40


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param({"layer_types": ["chunked_attention"] * 2}, "layer_types must be .* got chunked", id="kind"),
        pytest.param({"layer_types": ["sliding_attention"] * 2}, "must have use_sliding_window", id="no window"),
    ],
)
def test_layers_that_attend_otherwise_are_refused(changes: dict[str, Any], message: str) -> None:
    folder = copied(checkpoint("qwen2"))
    edit(folder / "config.json", lambda content: content["text_config"].update(use_sliding_window=False, **changes))
    with pytest.raises(Refused, match=message):
        read_facts(str(folder), None)


def test_what_is_asked_for_is_in_run_json() -> None:
    described = load(checkpoint()).describe()
    assert json.loads(json.dumps(described))["pixels"]["factor"] == 1 / 255


def test_a_tower_without_a_class_token_cannot_choose_image_tokens() -> None:
    facts = read_facts(str(checkpoint()), None)
    assert with_image_tokens(facts, 0.4).anyres.share == 0.4
    siglip = replace(facts, feature_strategy="full")
    assert with_image_tokens(siglip, 1.0) == siglip
    with pytest.raises(Refused, match="--image-tokens needs a vision tower .*, siglip_vision_model has"):
        with_image_tokens(siglip, 0.4)
