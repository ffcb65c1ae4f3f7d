"""Proof that a checkpoint can be loaded: its files hold what its config's network needs, no more and no less."""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig
from transformers.utils.quantization_config import QuantizationMethod

from pipeline.weights.adapter import changes_of, describe_changes, read_lora
from pipeline.weights.headers import Stored, describe_shape, stored_tensors
from pipeline.weights.network import LAYERS, Network, network_of, quantization_of, unused_by
from schemas.errors import Refused

_FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")
_PLAIN = _FLOATS[:4]
# Parts of names that PEFT leaves around layers, and those that training's wrappers put before all of a model.
_ADAPTED = re.compile(r"\.(lora_[A-Za-z_]+|base_layer)\.")
_PREFIXES = ("module.", "_orig_mod.", "base_model.model.", "_forward_module.", "_fsdp_wrapped_module.")
_LAYER = re.compile(re.escape(LAYERS) + r"(\d+)\.")


def prove_checkpoint(folder: str, config: PreTrainedConfig) -> None:
    """Raise Refused, naming the first tensor, where the files at `folder` lack, contradict or exceed the network.

    `folder` is a folder here or on the hub; only headers are read. Of weights that another package packed, which have
    tensors of their own, the names are checked, and of what is not packed the shapes as well.
    """
    stored = stored_tensors(folder, getattr(config, "transformers_weights", None))
    network = network_of(config)
    packed = quantization_of(config) is not None
    if packed:
        _check_method(folder, quantization_of(config))
        _check_packed(folder, stored)
    problems = list(_problems(stored, network, packed))
    if problems:
        raise Refused(f"{folder} must have the tensors that its config.json describes: {_first_of(problems)}")


def prove_adapter(folder: Path, config: PreTrainedConfig, base: str) -> Iterator[str]:
    """Return what is to be said of an adapter; raise Refused where it cannot be merged into a base of this config."""
    if quantization_of(config) is not None:
        raise Refused(f"--adapter must have a base that is not quantised, {base!r} is: give the one it was made from")
    lora = read_lora(folder)
    changes = changes_of(folder, lora, network_of(config))
    return describe_changes(lora, changes, base)


def check_loaded(report: Mapping[str, Any], config: PreTrainedConfig, model: str) -> None:
    """Raise Refused where transformers' own report of a load says that anything was made up or left over."""
    is_unused = unused_by(config)
    packed = quantization_of(config) is not None  # whose tensors are the package's own matter
    problems = [
        *(f"{name} was not there" for name in sorted(report["missing_keys"]) if not is_unused(name)),
        *(f"{name} has another shape" for name, *_ in sorted(report["mismatched_keys"]) if not is_unused(name)),
        *(f"{name} fits nothing" for name in sorted(report["unexpected_keys"]) if not packed and not is_unused(name)),
        *(" ".join(str(message).split()) for message in report["error_msgs"]),
    ]
    if problems:
        raise Refused(f"{model} must load as a whole: {_first_of(problems)}")


def _check_method(folder: str, stored: object) -> None:
    """Refuse a way of packing that transformers does not know: it would take packed numbers for weights."""
    told = stored if isinstance(stored, dict) else getattr(stored, "to_dict", dict)()
    method = told.get("quant_method") or ("bitsandbytes" if {"load_in_8bit", "load_in_4bit"} & set(told) else None)
    known = {str(getattr(one, "value", one)) for one in QuantizationMethod}
    if str(getattr(method, "value", method)) not in known:
        raise Refused(f"{folder} must be quantised by a method that transformers knows, its config.json has {method!r}")


def _check_packed(folder: str, stored: Mapping[str, Stored]) -> None:
    """Refuse weights that are not packed though their config says so: a merge leaves it behind."""
    if all(tensor.dtype in _PLAIN for tensor in stored.values()):
        raise Refused(
            f"{folder} must hold packed weights as the quantization_config in its config.json says, all of them are "
            "plain numbers: take quantization_config out (--quantize packs them as they are loaded)"
        )


def _problems(stored: Mapping[str, Stored], network: Network, packed: bool) -> Iterator[str]:
    yield from _wrapped(stored, network)
    names: dict[str, list[str]] = defaultdict(list)
    for name in stored:
        names[network.name_of(name)].append(name)
    yield from _lacking(network, names, packed)
    order = {name: index for index, name in enumerate(network.shapes)}
    for name, sources in sorted(names.items(), key=lambda item: order.get(item[0], len(order))):
        if len(sources) > 1:
            yield f"{name} must be there once, it is there as {' and as '.join(sources)}"
        elif name in network.shapes:
            yield from _differing(network.shapes[name], sources[0], stored[sources[0]], packed)
        elif not network.is_unused(name) and not (packed and _of_a_module(name, network)):
            yield _extra(sources[0], name, stored[sources[0]], network)


def _lacking(network: Network, names: Mapping[str, list[str]], packed: bool) -> Iterator[str]:
    found = set(names)
    if packed:  # any tensor of a module may stand for its weight
        modules = {name[: at.start()] for name in names for at in re.finditer(r"\.", name)}
        found |= {name for name in network.shapes if name.endswith(".weight") and name[: -len(".weight")] in modules}
    for name in network.missing(found):
        yield f"{name} {describe_shape(network.shapes[name])} is missing"


def _differing(needed: tuple[int, ...], name: str, stored: Stored, packed: bool) -> Iterator[str]:
    if stored.dtype not in _FLOATS:
        if not packed:
            yield f"{name} must hold floating-point numbers, it has {stored.dtype} in {stored.file}"
    elif stored.shape != needed and not (packed and name.endswith(".weight") and len(needed) > 1):
        shapes = f"{describe_shape(needed)}, it is {describe_shape(stored.shape)}"
        yield f"{name} must be {shapes} in {stored.file}"


def _of_a_module(name: str, network: Network) -> bool:
    """Return whether a tensor belongs to one of the network's modules that have a weight."""
    return any(name[: at.start()] + ".weight" in network.shapes for at in re.finditer(r"\.", name))


def _wrapped(stored: Mapping[str, Stored], network: Network) -> Iterator[str]:
    """Yield what is there of a model that was saved from within something else, which its names show."""
    for name, tensor in stored.items():
        if _ADAPTED.search(name):
            yield f"{name} in {tensor.file} is of an adapter that is not merged: save what merge_and_unload() returns"
            return
        prefix = next((one for one in _PREFIXES if name.startswith(one)), None)
        if prefix and network.name_of(name) not in network.shapes:
            whole = name.removeprefix(prefix)
            yield f"{name} in {tensor.file} must be {whole}: save the model itself, not what is around it"
            return


def _extra(source: str, name: str, stored: Stored, network: Network) -> str:
    layer = _LAYER.match(name)
    is_known = layer is None or any(one.startswith(layer[0]) for one in network.shapes)
    why = "the network has no such tensor" if layer is None or is_known else f"the config has no text layer {layer[1]}"
    return f"{source} {describe_shape(stored.shape)} in {stored.file} is one too many, {why}"


def _first_of(problems: list[str]) -> str:
    return problems[0] + (f" (and {len(problems) - 1} more)" if len(problems) > 1 else "")
