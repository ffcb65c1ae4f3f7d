"""LoRA adapters in PEFT's layout with random numbers, and the checkpoints that they come to merged by hand."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.tiny import checkpoint

RANK, ALPHA = 4, 24
NEW = "base_model.model.model.language_model."  # how transformers 5 calls the text network, under PEFT's prefix
OLD = "base_model.model.language_model.model."
ATTENTION = tuple(f"layers.{layer}.self_attn.{name}" for layer in (0, 1) for name in ("q_proj", "v_proj"))


def weights_of(folder: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint as its file calls them."""
    return load_file(folder / "model.safetensors")


def factors(weight: Tensor, rank: int = RANK, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A and B for a matrix, large enough that answers change."""
    generator = torch.Generator().manual_seed(seed)
    rows, columns = weight.shape
    return torch.randn(rank, columns, generator=generator), torch.randn(rows, rank, generator=generator) * 0.05


def write_adapter(folder: Path, tensors: Mapping[str, Tensor], **config: Any) -> Path:
    """An adapter's folder with these tensors and a config of a plain LoRA but for what is said."""
    folder.mkdir(parents=True, exist_ok=True)
    told = {"peft_type": "LORA", "base_model_name_or_path": str(checkpoint()), "r": RANK, "lora_alpha": ALPHA}
    (folder / "adapter_config.json").write_text(json.dumps({**told, "target_modules": ["q_proj", "v_proj"], **config}))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "adapter_model.safetensors")
    return folder


def pairs(modules: Mapping[str, str], rank: int = RANK, base: Path | None = None) -> dict[str, Tensor]:
    """The factors of modules: each by its name in the adapter, and the weight in the base's file that it changes."""
    weights = weights_of(base or checkpoint())
    found = {}
    for seed, (module, weight) in enumerate(modules.items()):
        a, b = factors(weights[weight], rank, seed)
        found |= {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b}
    return found


def attention_pairs(prefix: str = NEW) -> dict[str, Tensor]:
    """The factors of an adapter for both layers' queries and values."""
    return pairs({prefix + name: f"language_model.model.{name}.weight" for name in ATTENTION})


def write_merged(folder: Path, changed: Mapping[str, Tensor]) -> Path:
    """The tiny checkpoint with these tensors in place of its own, by the names of its file."""
    shutil.copytree(checkpoint(), folder)
    weights = weights_of(folder)
    assert set(changed) <= set(weights)
    save_file({**weights, **changed}, folder / "model.safetensors", {"format": "pt"})
    return folder
