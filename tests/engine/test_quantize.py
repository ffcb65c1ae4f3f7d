"""bitsandbytes' 8 and 4 bits: which layers they are in, what they cost the answers, saved and loaded again."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoProcessor

from pipeline.engine.engine import Engine
from pipeline.engine.network.load import LoadedModel, load_model
from pipeline.engine.reference.load import load_reference
from schemas.engine import EngineSettings
from schemas.errors import Refused
from schemas.sample import Sample
from tests.engine.oracle import FP32, Oracle, mixed_questions
from tests.tiny import checkpoint

KINDS = {"8bit": "Linear8bitLt", "4bit": "Linear4bit"}


@pytest.fixture(scope="module", params=KINDS)
def quantized(request) -> EngineSettings:
    return replace(FP32, quantize=request.param)


def kinds_of_layers(model: LoadedModel) -> dict[str, str]:
    """The class of every product in the network, by its name."""
    modules = model.network.named_modules()
    return {name: type(module).__name__ for name, module in modules if isinstance(module, torch.nn.Linear)}


def exact(engine: Engine, samples: list[Sample]) -> list[tuple[str | None, float | None]]:
    """Every number of rows asked for one after the other: in 8 bits those of one product may change each other's."""
    return [(one.text, one.mean_logprob) for sample in samples for one in engine.generate([sample])]


def test_the_decoders_layers_are_quantised_and_nothing_else(quantized) -> None:
    model = load_model(str(checkpoint()), quantized)
    kinds = kinds_of_layers(model)
    decoder = {name for name in kinds if name.startswith("model.language_model.layers.")}
    assert len(decoder) == 7 * model.decoder.shape.layers
    assert {kinds[name] for name in decoder} == {KINDS[quantized.quantize]}
    others = {name: kind for name, kind in kinds.items() if name not in decoder}
    assert set(others.values()) == {"Linear"}
    assert any("vision_tower" in name for name in others)
    assert any("multi_modal_projector" in name for name in others)
    assert "lm_head" in others


def test_our_decoder_gives_what_transformers_gives_with_the_same_layers(quantized) -> None:
    oracle = Oracle(load_model(str(checkpoint()), quantized), str(checkpoint()))
    questions = mixed_questions()[:3]
    answers = Engine(oracle.model, quantized).generate(oracle.sample(q) for q in questions)
    assert [a.text for a in answers] == [oracle.spelled(q) for q in questions]


def test_a_saved_checkpoint_that_is_quantised_gives_the_same_answers(oracle, quantized, tmp_path: Path) -> None:
    model = load_model(str(checkpoint()), quantized)
    model.network.save_pretrained(tmp_path)
    AutoProcessor.from_pretrained(str(checkpoint()), backend="pil").save_pretrained(tmp_path)
    samples = [oracle.sample(q) for q in mixed_questions()]
    first = exact(Engine(model, quantized), samples)
    again = load_model(str(tmp_path), FP32)
    assert kinds_of_layers(again) == kinds_of_layers(model)
    assert exact(Engine(again, FP32), samples) == first
    with pytest.raises(ValueError, match=r"quantize must be left out, .* is quantised already \(bitsandbytes\)"):
        load_model(str(tmp_path), quantized)


@pytest.mark.parametrize("place", ["config", "text_config"])
def test_weights_that_either_config_calls_packed_are_packed_no_second_time(
    tmp_path: Path, quantized, place: str
) -> None:
    folder = tmp_path / "packed"
    shutil.copytree(checkpoint(), folder)
    config = json.loads((folder / "config.json").read_text())
    told = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    config.get(place, config)["quantization_config"] = told
    (folder / "config.json").write_text(json.dumps(config))
    for load in (load_model, load_reference):
        with pytest.raises(Refused, match="quantize must be left out, .* is quantised already"):
            load(str(folder), quantized)
