"""The benchmarks of large networks and of the vision tower run on tiny ones without a GPU."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import attention
from benchmarks.packed import packed
from benchmarks.placement import main, table
from benchmarks.random_model import write_model
from pipeline.engine.network.load import load_model
from schemas.engine import EngineSettings
from tests.tiny import checkpoint

TINY_TOWER = "--shape tiny --device cpu --images 4 --tiles 3 --rounds 1"
BITS = {"8bit": "Linear8bitLt", "4bit": "Linear4bit"}


def test_a_case_is_measured_over_its_devices(capsys) -> None:
    main(["tiny:2:fp8", "--device", "cpu", "--dtype", "float32", "--images", "2"])
    (measured,) = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (measured["case"]["num_devices"], measured["case"]["quantize"]) == (2, "fp8")
    assert measured["images_per_s"] > 0 < measured["answer_tokens_per_s"]
    head, line = table([measured])
    assert line.split()[:3] == ["tiny", "2", "fp8"]
    assert head.startswith("shape")


@pytest.mark.parametrize("quantize", BITS)
def test_random_weights_are_in_the_bits_asked_for(quantize, tmp_path: Path) -> None:
    model = write_model("tiny", tmp_path).load(EngineSettings(quantize=quantize, num_devices=2))
    products = {name: m for name, m in model.network.named_modules() if isinstance(m, torch.nn.Linear)}
    kinds = {name: type(product).__name__ for name, product in products.items()}
    assert {kind for name, kind in kinds.items() if ".layers." in name and "language" in name} == {BITS[quantize]}
    assert {kind for name, kind in kinds.items() if "language" not in name} == {"Linear"}
    assert (model.compilable, model.capturable) == (False, quantize == "4bit")


@pytest.mark.parametrize("quantize", BITS)
def test_weights_are_packed_as_loading_packs_them(quantize) -> None:
    settings = EngineSettings(quantize=quantize)
    loaded, plain = (load_model(str(checkpoint("qwen2")), s) for s in (settings, replace(settings, quantize=None)))
    pairs = zip(*(model.network.model.language_model.layers for model in (loaded, plain)), strict=True)
    for theirs, layer in pairs:
        ours = packed(layer, settings).state_dict()
        assert all(torch.equal(ours.pop(name), stored) for name, stored in theirs.state_dict().items())
        assert not ours


@pytest.mark.parametrize("quantize", BITS)
def test_a_case_in_fewer_bits_is_measured(quantize, capsys) -> None:
    main([f"tiny::{quantize}", "--device", "cpu", "--images", "2"])
    (measured,) = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert measured["case"]["quantize"] == quantize
    assert measured["answer_tokens_per_s"] > 0


@pytest.mark.soak
def test_a_case_that_fails_says_why_and_the_others_go_on(capsys) -> None:
    with pytest.raises(SystemExit):
        main(["tiny:3", "tiny", "--device", "cpu", "--images", "2"])
    said = capsys.readouterr()
    failed, measured = json.loads(said.out.splitlines()[-1])
    assert "num_devices must be at most the model's 2 layers, got 3" in failed["error"]
    assert measured["images_per_s"] > 0
    assert [line.split()[0] for line in said.err.splitlines()[-3:]] == ["shape", "tiny:3", "tiny"]


def test_every_attention_is_measured_or_says_what_is_missing(capsys) -> None:
    attention.main([*TINY_TOWER.split(), "--dtype", "float32"])
    said = capsys.readouterr()
    sdpa, eager, flash = json.loads(said.out.splitlines()[-1])
    assert sdpa["ms_a_tile"] > 0 < eager["ms_a_tile"]
    assert sdpa["off"] == 0 < eager["off"] < 1e-5
    assert "flash_attention_2  attention 'flash_attention_2' needs the package flash-attn" in said.err
    assert flash["error"].endswith("pip install flash-attn --no-build-isolation, or attention 'sdpa'")
