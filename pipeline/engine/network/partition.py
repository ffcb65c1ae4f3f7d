"""Partition a network over devices: layers in order, in equal shares."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from schemas.engine import EngineSettings
from schemas.errors import Refused


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Neighbouring layers of the decoder, and the device of their weights, keys and values."""

    device: torch.device
    layers: range


def devices_of(settings: EngineSettings) -> tuple[torch.device, ...]:
    """Return the devices of one model; raises Refused where this machine has fewer."""
    first = torch.device(settings.device)
    if first.type == "cpu":
        return (first,) * settings.num_devices
    if not torch.cuda.is_available():
        raise Refused(f"device must exist on this machine, which has no CUDA device, got {settings.device!r}")
    start = torch.cuda.current_device() if first.index is None else first.index
    found = torch.cuda.device_count()
    if start + settings.num_devices > found:
        asked = f"{settings.num_devices} from {settings.device!r} on"
        raise Refused(f"device and num_devices must exist on this machine, which has {found}, got {asked}")
    return tuple(torch.device(first.type, i) for i in range(start, start + settings.num_devices))


def partition(num_layers: int, devices: Sequence[torch.device]) -> tuple[Part, ...]:
    """Share the layers equally between the devices; raises Refused where a device would have none."""
    if len(devices) > num_layers:
        raise Refused(f"num_devices must be at most the model's {num_layers} layers, got {len(devices)}")
    bounds = [num_layers * i // len(devices) for i in range(len(devices) + 1)]
    return tuple(Part(device=device, layers=range(bounds[i], bounds[i + 1])) for i, device in enumerate(devices))


def device_map(parts: Sequence[Part]) -> dict[str, torch.device]:
    """Return the device of every module of transformers' network, by its name there."""
    layers = {f"model.language_model.layers.{i}": part.device for part in parts for i in part.layers}
    return {**_around(parts), **layers}


def move_to_devices(network: nn.Module, parts: Sequence[Part]) -> None:
    """Move all but the decoder's layers to their devices; remove hooks, as the decoder itself moves activations."""
    for name, device in _around(parts).items():
        owner, _, last = name.rpartition(".")
        found = getattr(network.get_submodule(owner), last)
        if isinstance(found, nn.Parameter):
            found.data = found.data.to(device)
        else:
            move(found, device)
    for module in network.modules():
        if hasattr(module, "_hf_hook"):
            from accelerate.hooks import remove_hook_from_module  # where hooks are, accelerate put them

            remove_hook_from_module(module)


def move(module: nn.Module, device: torch.device) -> nn.Module:
    """Move a module to a device. One that is there is not touched: moving packed weights packs them again."""
    there = all(tensor.device == device for tensor in (*module.parameters(), *module.buffers()))
    return module if there else module.to(device)


def _around(parts: Sequence[Part]) -> dict[str, torch.device]:
    """Return the devices of what comes before the layers, the first one, and after them, the last one."""
    text = "model.language_model"
    own = (f"{text}.embed_tokens", f"{text}.rotary_emb")
    before = ("model.vision_tower", "model.multi_modal_projector", "model.image_newline", *own)
    return {**dict.fromkeys(before, parts[0].device), **dict.fromkeys((f"{text}.norm", "lm_head"), parts[-1].device)}
