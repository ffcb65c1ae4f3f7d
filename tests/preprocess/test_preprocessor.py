import functools
import hashlib
import json
import shutil

import numpy as np
import pytest
from transformers import AutoProcessor, CLIPVisionConfig, SiglipVisionConfig

from demo.checkpoint import Shape, build_config
from pipeline.preprocess.conversation import ask
from pipeline.preprocess.facts import read_facts
from pipeline.preprocess.geometry import Anyres
from pipeline.preprocess.image import ImageLimits
from pipeline.preprocess.preprocessor import Preprocessor
from schemas.errors import RowError
from schemas.sample import Sample, Size
from tests.images import encoded, noise
from tests.tiny import checkpoint

LIMITS = ImageLimits()


@functools.cache
def tiny() -> Preprocessor:
    return Preprocessor.load(str(checkpoint()), None, LIMITS, max_new_tokens=16)


def test_the_facts_are_those_of_the_config() -> None:
    facts = tiny().facts
    grids = (
        Size(112, 56),
        Size(56, 112),
        Size(112, 112),
        Size(56, 168),
        Size(168, 56),
    )  # the config's are height first
    assert facts.anyres == Anyres(tile=56, patch=14, grids=grids)
    assert (facts.text.backbone, facts.context, facts.image_token_id) == ("llama", 1024, 2)


def test_an_image_and_a_question_become_a_sample() -> None:
    data = encoded(noise(90, 60))
    images = tiny().load_images([data])
    prompt = tiny().build_prompt("what", "What is this?", images)
    sample = Sample(
        id="a",
        prompts=(prompt,),
        image_sizes=images.image_sizes,
        tiles_per_image=images.tiles_per_image,
        tiles=images.tiles,
        image_sha256=images.image_sha256,
    )
    assert sample.image_sizes == (Size(90, 60),)
    assert sample.tiles.shape == (5, 56, 56, 3)
    assert sample.image_sha256 == hashlib.sha256(data).hexdigest()
    assert (prompt.id, prompt.text, prompt.max_new_tokens) == ("what", "What is this?", 16)
    assert np.count_nonzero(prompt.token_ids == 2) == prompt.num_image_tokens == images.image_tokens[0]


def test_images_keep_their_order_and_each_its_tiles() -> None:
    wide, tall = encoded(noise(300, 30)), encoded(noise(40, 40))
    images = tiny().load_images([wide, tall])
    assert images.image_sizes == (Size(300, 30), Size(40, 40))
    assert images.tiles_per_image == (4, 3)
    assert np.array_equal(images.tiles[4:], tiny().load_images([tall]).tiles)
    prompt = tiny().build_prompt("p", "Which?", images)
    assert prompt.num_image_tokens == sum(images.image_tokens)


def test_the_ids_and_tiles_of_two_images_are_those_of_transformers_processor() -> None:
    pictures = [noise(300, 30), noise(40, 90)]
    images = tiny().load_images([encoded(picture) for picture in pictures])
    prompt = tiny().build_prompt("p", "Which?", images)
    processor = AutoProcessor.from_pretrained(checkpoint(), backend="pil")
    expected = processor(images=pictures, text=tiny().render(ask("Which?", 2)), return_tensors="np", do_pad=True)
    assert prompt.token_ids.tolist() == expected["input_ids"][0].tolist()
    assert [[size.height, size.width] for size in images.image_sizes] == expected["image_sizes"].tolist()


def test_a_row_without_images_asks_its_question_alone() -> None:
    images = tiny().load_images([])
    assert images.image_sizes == images.tiles_per_image == images.image_tokens == ()
    assert images.tiles.shape == (0, 0, 0, 3)
    prompt = tiny().build_prompt("p", "Hello?", images)
    assert prompt.num_image_tokens == 0
    assert 2 not in prompt.token_ids


def test_one_broken_image_fails_the_row() -> None:
    whole = encoded(noise(90, 60))
    with pytest.raises(RowError, match="decode: BrokenImage"):
        tiny().load_images([whole, whole[:999]])


def test_images_that_are_too_long_for_the_context_fail_the_prompt() -> None:
    decoded = []
    images = (decoded.append(number) or encoded(noise(90, 90)) for number in range(99))
    with pytest.raises(RowError, match="prompt: PromptTooLong: 12 images are .* image tokens, .* context is 1024"):
        tiny().load_images(images)
    assert len(decoded) == 12


def test_places_are_counted_before_there_is_an_image() -> None:
    tiny().check_num_images(15)
    with pytest.raises(RowError, match="PromptTooLong: 99 images are at least .* image tokens, .* context is 1024"):
        tiny().check_num_images(99)


def test_an_answer_gets_what_its_prompt_leaves_of_the_context() -> None:
    wordy = Preprocessor.load(str(checkpoint()), None, ImageLimits(), max_new_tokens=4096)
    prompt = wordy.build_prompt("p", "Hello?", wordy.load_images([encoded(noise(90, 60))]))
    assert len(prompt.token_ids) + prompt.max_new_tokens == 1024
    assert tiny().build_prompt("p", "Hello?", tiny().load_images([])).max_new_tokens == 16


def test_a_limit_holds_for_every_image() -> None:
    strict = Preprocessor.load(str(checkpoint()), None, ImageLimits(max_pixels=100), max_new_tokens=16)
    with pytest.raises(RowError, match="TooManyPixels"):
        strict.load_images([encoded(noise(10, 10)), encoded(noise(10, 11))])


def test_a_missing_folder_is_refused_by_name(tmp_path) -> None:
    with pytest.raises(ValueError, match=f"model '{tmp_path}' must be a checkpoint's folder or a hub id"):
        read_facts(str(tmp_path), None)


def test_another_kind_of_model_is_refused_by_name(tmp_path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(ValueError, match=r"must be a LLaVA-NeXT checkpoint \(llava_next\), got 'llama'"):
        read_facts(str(tmp_path), None)


def test_a_vision_tower_whose_features_do_not_fill_the_grid_is_refused(tmp_path) -> None:
    config = build_config(Shape(), vocabulary=100)
    config.vision_feature_select_strategy = "full"  # CLIP's class token would stand among the patches
    config.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="got clip_vision_model with 'full'"):
        read_facts(str(tmp_path), None)


def test_a_siglip_tower_has_no_class_token_to_drop(tmp_path) -> None:
    config = build_config(Shape(), vocabulary=100)
    assert isinstance(config.vision_config, CLIPVisionConfig)
    config.vision_config = SiglipVisionConfig(image_size=56, patch_size=14)
    config.vision_feature_select_strategy = "full"
    config.save_pretrained(tmp_path)
    assert read_facts(str(tmp_path), None).anyres == tiny().facts.anyres


def test_weights_are_not_needed(tmp_path) -> None:
    shutil.copytree(checkpoint(), tmp_path, dirs_exist_ok=True)
    (tmp_path / "model.safetensors").unlink()
    assert Preprocessor.load(str(tmp_path), None, LIMITS, max_new_tokens=1).facts.context == 1024


def test_an_answer_of_no_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="max_new_tokens must be at least 1, got 0"):
        Preprocessor.load(str(checkpoint()), None, LIMITS, max_new_tokens=0)
