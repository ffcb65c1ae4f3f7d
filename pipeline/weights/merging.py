"""Merging: a checkpoint's tensors with a LoRA adapter added as each of them is read, in float32."""

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import EllipsisType
from typing import Any, Protocol

from huggingface_hub import snapshot_download
from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedConfig

from pipeline.weights.adapter import WEIGHTS, Pair, changes_of, read_lora
from pipeline.weights.headers import INDEX, SINGLE, weights_files
from pipeline.weights.network import network_of


class Slice(Protocol):
    """A tensor that is read when it is asked for."""

    def __getitem__(self, index: EllipsisType) -> Tensor: ...


class Tensors(Protocol):
    """An open file of tensors."""

    def get_tensor(self, name: str) -> Tensor: ...


class Merged:
    """One tensor, summed when transformers reads it as it reads a slice of a file: `[...]`."""

    def __init__(self, base: Slice, file: Tensors, pair: Pair) -> None:
        self._base, self._file, self._pair = base, file, pair

    def __getitem__(self, index: EllipsisType) -> Tensor:
        a, b = (self._file.get_tensor(name).float() for name in (self._pair.a, self._pair.b))
        change = (b @ a) * self._pair.scale
        return self._base[index].float() + (change.T if self._pair.embedding else change)


@contextmanager
def merged_tensors(
    model: str, revision: str | None, config: PreTrainedConfig, adapter: str
) -> Iterator[Mapping[str, Any]]:
    """Give every tensor of the base by its name in the files, as lazily as transformers' own loading has them."""
    folder, network, lora = local_folder(model, revision), network_of(config), read_lora(Path(adapter))
    with ExitStack() as files:
        tensors: dict[str, Any] = {}
        for name in weights_files(folder, getattr(config, "transformers_weights", None))[0]:
            file: Any = files.enter_context(safe_open(str(Path(folder, name)), framework="pt"))
            tensors |= {stored: file.get_slice(stored) for stored in list(file.keys())}
        names = {network.name_of(stored): stored for stored in tensors}
        changes = changes_of(Path(adapter), lora, network)
        own: Any = files.enter_context(safe_open(str(Path(adapter, WEIGHTS)), framework="pt"))
        for target, name in changes.replaced.items():  # first: PEFT saves the table that it adds to beside the factors
            tensors[names.setdefault(target, target)] = own.get_slice(name)
        for target, pair in changes.added.items():
            tensors[names[target]] = Merged(tensors[names[target]], own, pair)
        yield tensors


def local_folder(model: str, revision: str | None) -> str:
    """Return a folder of this machine with the weights of a model, brought from the hub where it is one of its ids."""
    if Path(model).is_dir():
        return model
    folder = Path(snapshot_download(model, revision=revision, allow_patterns=[SINGLE, INDEX, "config.json"]))
    if not (folder / SINGLE).exists() and (folder / INDEX).exists():
        shards = sorted(set(json.loads((folder / INDEX).read_bytes())["weight_map"].values()))
        snapshot_download(model, revision=folder.name, allow_patterns=shards)
    return str(folder)
