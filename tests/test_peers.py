"""What other engines read of benchmarks.peers: a checkpoint with the names, and the prompts, of the published ones."""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from safetensors import safe_open
from transformers import AutoConfig, LlavaNextForConditionalGeneration

from benchmarks.peers import FORMAT, main, published


@pytest.mark.parametrize(
    ("today", "then"),
    [
        ("model.vision_tower.pre_layrnorm.bias", "vision_tower.vision_model.pre_layrnorm.bias"),
        ("model.language_model.norm.weight", "language_model.model.norm.weight"),
        ("lm_head.weight", "language_model.lm_head.weight"),
        ("model.image_newline", "image_newline"),
    ],
)
def test_a_weight_is_called_as_in_the_published_checkpoints(today: str, then: str) -> None:
    assert published(today) == then


def test_a_folder_for_the_peers_is_a_whole_checkpoint_and_its_workload(tmp_path: Path) -> None:
    main(["write", str(tmp_path), "--shape", "tiny", "--images", "1", "--weights"])
    model = tmp_path / "model"
    assert AutoConfig.from_pretrained(model).text_config.architectures == ["LlamaForCausalLM"]
    with safe_open(model / "model.safetensors", framework="pt") as weights:
        names = weights.keys()
    assert names
    assert not [name for name in names if name.startswith("model.")]
    loaded: Any = LlavaNextForConditionalGeneration.from_pretrained(model, output_loading_info=True)
    loading = loaded[1]
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    (row,) = pq.read_table(tmp_path / "caption.parquet").to_pylist()
    assert row["prompt"] == FORMAT.format("Describe it.")
