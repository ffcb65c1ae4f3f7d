"""The image processor's settings are honoured as transformers does, or refused by name."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlavaNextImageProcessorPil

from pipeline.engine.network.vision import normalise
from pipeline.preprocess.geometry import Anyres
from pipeline.preprocess.image import ImageLimits
from pipeline.preprocess.pixels import PixelScale, read_pixels
from pipeline.preprocess.preprocessor import Preprocessor
from schemas.errors import Refused
from schemas.sample import Size
from tests.checkpoints import changed, copied
from tests.images import noise

ANYRES = Anyres(tile=56, patch=14, grids=(Size(112, 56), Size(56, 112)))
SETTINGS = {
    "size": {"shortest_edge": 56},
    "crop_size": {"height": 56, "width": 56},
    "image_grid_pinpoints": [[56, 112], [112, 56]],
}


def settings(**changes: Any) -> LlavaNextImageProcessorPil:
    return LlavaNextImageProcessorPil.from_dict({**SETTINGS, **changes})


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="as published"),
        pytest.param({"do_normalize": False}, id="rescaled only"),
        pytest.param({"do_rescale": False}, id="normalised only"),
        pytest.param({"do_rescale": False, "do_normalize": False}, id="neither"),
        pytest.param({"rescale_factor": 1 / 127.5}, id="another factor"),
        pytest.param({"image_mean": 0.5, "image_std": 0.5}, id="one number for all channels"),
        pytest.param({"image_mean": [0, 0, 0], "image_std": [1, 1, 1]}, id="whole numbers"),
        pytest.param({"do_resize": False, "do_center_crop": False, "do_pad": False}, id="steps that change nothing"),
        pytest.param({"size": {"height": 56, "width": 56}}, id="height and width"),
    ],
)
def test_levels_become_the_numbers_of_transformers(changes: dict[str, Any]) -> None:
    processor = settings(**changes)
    image = noise(112, 56)
    expected = torch.from_numpy(np.stack(processor(image, return_tensors="np")["pixel_values"][0])).float()
    tiles = processor(image, return_tensors="np", do_rescale=False, do_normalize=False)["pixel_values"][0]
    levels = torch.from_numpy(np.stack(tiles).astype(np.uint8)).permute(0, 2, 3, 1)
    torch.testing.assert_close(normalise(levels, read_pixels(processor, ANYRES).scale), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("value", "resample"),
    [pytest.param(3, "bicubic"), pytest.param(2, "bilinear"), pytest.param(None, "bilinear", id="transformers' own")],
)
def test_an_image_is_scaled_as_the_processor_says(value: int | None, resample: str) -> None:
    assert read_pixels(settings(resample=value), ANYRES).resample == resample


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param({"resample": 0}, r"resample must be 2 \(bilinear\) or 3 \(bicubic\), got 0", id="nearest"),
        pytest.param({"resample": 1}, "resample must be .* got 1", id="lanczos"),
        pytest.param({"resample": "bicubic"}, "resample must be .* got 'bicubic'", id="a name"),
        pytest.param({"resample": [3]}, "resample must be .* got", id="a list"),
        pytest.param({"size": {"shortest_edge": 28}}, "size must be the 56 pixels", id="another size"),
        pytest.param({"size": {"height": 56, "width": 28}}, "size must be the 56 pixels", id="not square"),
        pytest.param({"size": {"shortest_edge": 56, "longest_edge": 60}}, "size must be the 56", id="two edges"),
        pytest.param({"crop_size": {"height": 28, "width": 28}}, "crop_size must be the 56 pixels", id="crop"),
        pytest.param({"crop_size": None}, "crop_size must be the 56 pixels", id="a crop of no size"),
        pytest.param({"image_grid_pinpoints": [[56, 112]]}, "image_grid_pinpoints must be those of config", id="fewer"),
        pytest.param({"image_grid_pinpoints": None}, "image_grid_pinpoints must be those of config", id="none"),
        pytest.param({"image_grid_pinpoints": 7}, "image_grid_pinpoints must be those of config", id="a number"),
        pytest.param({"image_mean": None}, "image_mean must be a number for each", id="mean null"),
        pytest.param({"image_mean": None, "image_std": None}, "image_mean must be a number for each", id="both null"),
        pytest.param({"image_std": None}, "image_std must be a number for each", id="std null"),
        pytest.param({"image_std": [0.5, 0.5]}, "image_std must be a number for each", id="two channels"),
        pytest.param({"image_mean": ["a", 0, 0]}, "image_mean must be a number for each", id="a text"),
        pytest.param({"image_std": [0.5, 0, 0.5]}, "image_std must be three numbers other than 0", id="std 0"),
        pytest.param({"rescale_factor": None}, "rescale_factor must be a number other than 0", id="factor null"),
        pytest.param({"rescale_factor": 0}, "rescale_factor must be a number other than 0", id="factor 0"),
        pytest.param({"rescale_factor": float("nan")}, "rescale_factor must be a number", id="factor nan"),
    ],
)
def test_what_is_not_done_as_transformers_does_it_is_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(Refused, match=f"the image processor's {message}"):
        read_pixels(settings(**changes), ANYRES)


def test_settings_of_no_use_may_be_null() -> None:
    scale = read_pixels(settings(do_normalize=None, image_mean=None, image_std=None), ANYRES).scale
    assert scale == PixelScale(factor=1 / 255, mean=None, std=None)


def test_another_kind_of_image_processor_is_refused_by_name() -> None:
    folder = changed(
        "processor_config.json", lambda c: c["image_processor"].update(image_processor_type="CLIPImageProcessor")
    )
    with pytest.raises(Refused, match="image_processor_type must be LlavaNextImageProcessor, got CLIP"):
        load(folder)


@pytest.mark.parametrize("nested", [True, False], ids=["processor_config.json", "preprocessor_config.json"])
def test_the_settings_are_found_in_either_file(nested: bool) -> None:
    folder = copied()
    processor = json.loads((folder / "processor_config.json").read_text())
    images = {**processor.pop("image_processor"), "resample": 2, "do_normalize": False}
    if nested:
        (folder / "processor_config.json").write_text(json.dumps({**processor, "image_processor": images}))
    else:
        (folder / "processor_config.json").write_text(json.dumps(processor))
        (folder / "preprocessor_config.json").write_text(json.dumps(images))
    facts = load(folder).facts
    assert (facts.anyres.resample, facts.pixels) == ("bilinear", PixelScale(factor=1 / 255, mean=None, std=None))


def load(folder: Path) -> Preprocessor:
    return Preprocessor.load(str(folder), None, ImageLimits(), max_new_tokens=8)
