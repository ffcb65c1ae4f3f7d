"""LoRA adapters in PEFT's layout: what one changes in a network, known from its config and its header alone."""

import json
import math
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.weights.headers import Stored, describe_shape, read_header
from schemas.errors import Refused

if TYPE_CHECKING:  # torch takes seconds to import, and a config is read without
    from pipeline.weights.network import Network

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
# Tensors that LLaVA's own trainer saves beside its adapters, as a pickle: the projector it trained.
_PICKLES = ("adapter_model.bin", "non_lora_trainables.bin")
_FLOATS = ("F64", "F32", "F16", "BF16")
_PREFIX = "base_model.model."
_LORA = re.compile(r"(?P<module>.+)\.lora_(?P<embedding>embedding_)?(?P<side>[AB])(\.[^.]+)??(\.weight)?")
# Parts that PEFT has put around a layer, which are no part of the network's names.
_WRAPPED = re.compile(r"\.(base_layer|modules_to_save(\.default)?)(?=\.)")

# Fields that change nothing about the sum W + scale * B @ A: how the adapter was trained, and where it applies, which
# its tensors say. Of all others a value that is neither null nor false nor empty makes another kind of adapter.
_HARMLESS = frozenset(
    {"alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "corda_config", "ensure_weight_tying"}
    | {"eva_config", "exclude_modules", "fan_in_fan_out", "inference_mode", "init_lora_weights", "layers_pattern"}
    | {"layers_to_transform", "loftq_config", "lora_alpha", "lora_dropout", "lora_ga_config", "megatron_config"}
    | {"megatron_core", "modules_to_save", "peft_type", "peft_version", "qalora_group_size", "r", "rank_pattern"}
    | {"revision", "runtime_config", "target_modules", "task_type", "unsloth_fixed", "use_rslora"}
)
# Beginnings that leave the base's own weights as they were; with others the base is another one than published.
_BEGINNINGS = (True, False, None, "gaussian", "eva", "orthogonal")


@dataclass(frozen=True, slots=True, kw_only=True)
class Lora:
    """Settings of an adapter's sums, from its config."""

    name: str  # of the adapter, for people
    base: str | None  # the model that it was trained on, as its author called it
    base_revision: str | None
    rank: int
    alpha: float
    root: bool  # scaled by the root of the rank: rsLoRA
    ranks: dict[str, int]  # by a pattern of the module's name
    alphas: dict[str, float]
    saved: tuple[str, ...]  # modules whose tensors are replaced
    targets: tuple[str, ...]  # modules that are named one by one and all of them there

    def rank_of(self, module: str) -> int:
        """Return the rank of a module's adapter."""
        return int(_by_pattern(self.ranks, module, self.rank))

    def scale_of(self, module: str) -> float:
        """Return what B @ A is multiplied by."""
        rank, alpha = self.rank_of(module), _by_pattern(self.alphas, module, self.alpha)
        return alpha / (math.sqrt(rank) if self.root else rank)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """The two factors of what is added to one of the network's tensors, by their names in the adapter's file."""

    a: str
    b: str
    scale: float
    embedding: bool  # stored the other way round, as the table is


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """Changes of an adapter to a network, by the network's names."""

    added: dict[str, Pair]
    replaced: dict[str, str]  # by a tensor of the adapter's file


def read_lora(folder: Path) -> Lora:
    """Return what the adapter's config says; raise Refused, by name, for any other kind than a plain LoRA."""
    config = _read_config(folder)
    kind = str(config.get("peft_type") or "").upper()
    if kind != "LORA":
        raise Refused(f"an adapter must be a LoRA, the one in {folder} is {kind or 'of no stated kind'}")
    for name, value in config.items():
        if name not in _HARMLESS and value:
            raise Refused(f"an adapter must be a plain LoRA, {folder / CONFIG} has {name}={str(value)[:60]}: merge it")
    if config.get("init_lora_weights") not in _BEGINNINGS:
        how = config["init_lora_weights"]
        raise Refused(f"{folder / CONFIG} has init_lora_weights={how!r}, which changes the base too: merge it")
    for file in _PICKLES:
        if (folder / file).exists():
            raise Refused(f"{folder / file} must be converted to safetensors, or left out: a pickle is not read")
    return _lora(folder, config)


def changes_of(folder: Path, lora: Lora, network: "Network") -> Changes:
    """Return what the adapter's tensors do to the network; reads the header alone.

    Raises Refused where a tensor fits nothing, has no partner, or has another shape than the base's.
    """
    header = read_header(str(folder / WEIGHTS))
    for name, tensor in header.items():
        if tensor.dtype not in _FLOATS:
            raise Refused(f"{name} of {folder / WEIGHTS} must hold floating-point numbers, it has {tensor.dtype}")
    pairs: dict[str, dict[str, str]] = {}
    replaced: dict[str, str] = {}
    for name in header:
        if found := _LORA.fullmatch(name):
            side = (found["embedding"] or "") + found["side"]
            _put(pairs.setdefault(found["module"], {}), side, name, folder)
        else:
            _put(replaced, _target(_WRAPPED.sub("", name), name, network, folder), name, folder)
    added: dict[str, Pair] = {}
    for module, sides in pairs.items():
        target = _target(f"{module}.weight", next(iter(sides.values())), network, folder)
        added[target] = _checked_pair(folder, lora, module, sides, header, network.shapes[target])
    for target, name in replaced.items():
        _check_replaced(folder, name, header[name], target, network.shapes[target])
    changes = Changes(added=added, replaced=replaced)
    _check_ties(folder, network, changes)
    _check_all_named(folder, lora, network, changes)
    return changes


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    try:
        config = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise Refused(f"--adapter must be a folder with an {CONFIG}, {str(folder)!r} has none") from error
    except ValueError as error:
        raise Refused(f"{path} must be JSON: {error}") from error
    if not isinstance(config, dict):
        raise Refused(f"{path} must be a JSON object")
    return config


def _lora(folder: Path, config: Mapping[str, Any]) -> Lora:
    rank, alpha = config.get("r"), config.get("lora_alpha")
    ranks, alphas = config.get("rank_pattern") or {}, config.get("alpha_pattern") or {}
    if not all(type(one) is int and one > 0 for one in (rank, *ranks.values())):
        raise Refused(f"{folder / CONFIG} must have ranks of 1 or more, got r={rank!r}, rank_pattern={ranks!r}")
    if not all(type(one) in (int, float) and math.isfinite(one) for one in (alpha, *alphas.values())):
        raise Refused(f"{folder / CONFIG} must have numbers for lora_alpha, alpha_pattern, got {alpha!r}, {alphas!r}")
    targets = config.get("target_modules")
    return Lora(
        name=str(folder),
        base=config.get("base_model_name_or_path") or None,
        base_revision=config.get("revision") or None,
        rank=int(rank or 0),
        alpha=float(alpha or 0),
        root=bool(config.get("use_rslora")),
        ranks=ranks,
        alphas=alphas,
        saved=tuple(config.get("modules_to_save") or ()),
        targets=tuple(targets) if isinstance(targets, list) and not config.get("exclude_modules") else (),
    )


def _by_pattern(values: Mapping[str, float], module: str, other: float) -> float:
    """Return the value of the first pattern that a module's name ends in, as PEFT finds it."""
    for pattern, value in values.items():
        if re.fullmatch(rf"(.*\.)?({pattern})", module):
            return value
    return other


def _put(into: dict[str, str], key: str, name: str, folder: Path) -> None:
    if key in into:
        raise Refused(f"{folder / WEIGHTS} must change each tensor once, {into[key]} and {name} are for the same one")
    into[key] = name


def _target(name: str, source: str, network: "Network", folder: Path) -> str:
    """Return the network's tensor of an adapter's: whichever of transformers' layouts it was trained in."""
    target = network.name_of(name.removeprefix(_PREFIX))
    if target not in network.shapes:
        raise Refused(f"every tensor of {folder / WEIGHTS} must fit the base, which has none for {source}")
    return target


def _checked_pair(
    folder: Path,
    lora: Lora,
    module: str,
    sides: Mapping[str, str],
    header: Mapping[str, Stored],
    shape: tuple[int, ...],
) -> Pair:
    embedding = any(side.startswith("embedding_") for side in sides)
    a, b = (sides.get(f"{'embedding_' if embedding else ''}{side}") for side in "AB")
    if a is None or b is None or len(sides) != 2:
        raise Refused(f"{folder / WEIGHTS} must have an A and a B for {module}, it has {', '.join(sides.values())}")
    if len(shape) != 2:
        raise Refused(f"{a} of {folder / WEIGHTS} must be for a matrix, the base has {describe_shape(shape)}")
    rank = lora.rank_of(module.removeprefix(_PREFIX))
    first, last = (shape[0], shape[-1]) if not embedding else (shape[-1], shape[0])
    wanted = ((rank, last), (first, rank))
    got = (header[a].shape, header[b].shape)
    if got != wanted:
        needed, found = (" and ".join(map(describe_shape, shapes)) for shapes in (wanted, got))
        raise Refused(f"{a} and B of {folder / WEIGHTS} must be {needed} for rank {rank}, they are {found}")
    return Pair(a=a, b=b, scale=lora.scale_of(module.removeprefix(_PREFIX)), embedding=embedding)


def _check_replaced(folder: Path, name: str, tensor: Stored, target: str, shape: tuple[int, ...]) -> None:
    if tensor.shape != shape:
        shapes = f"{describe_shape(shape)} as {target} of the base, it is {describe_shape(tensor.shape)}"
        raise Refused(f"{name} of {folder / WEIGHTS} must be {shapes}")


def _check_all_named(folder: Path, lora: Lora, network: "Network", changes: Changes) -> None:
    """Refuse an adapter that has no tensors for what its config names and the network has: a part is not there."""
    if not changes.added and not changes.replaced:
        raise Refused(f"{folder / WEIGHTS} must hold the adapter's tensors, it has none")
    for kind, names, found in (
        ("target_modules", lora.targets, changes.added),
        ("modules_to_save", lora.saved, changes.replaced),
    ):
        for name in names:
            if _among(name, network.shapes) and not _among(name, found):
                raise Refused(f"{folder / WEIGHTS} must have tensors for all {kind}, it has none for {name!r}")


def _check_ties(folder: Path, network: "Network", changes: Changes) -> None:
    """Refuse a change of one of two tensors that share their numbers: PEFT and a merge would not agree about it."""
    for one, other in network.tied.items():
        changed = {one, other} & (set(changes.added) | set(changes.replaced))
        if changed and not {one, other} <= set(changes.replaced):
            raise Refused(f"{folder} must not change {changed.pop()}, which the base ties: merge and untie them")


def _among(module: str, tensors: Collection[str]) -> bool:
    """Return whether any of the tensors belongs to a module that a config names, in whichever layout."""
    last = module.split(".")[-1]
    return any(last in tensor.split(".") for tensor in tensors)


def describe_changes(lora: Lora, changes: Changes, base: str) -> Iterator[str]:
    """Yield what is said of an adapter before a job starts."""
    saved = f" and {len(changes.replaced)} replaced" if changes.replaced else ""
    yield f"adapter {lora.name} (LoRA, rank {lora.rank}): {len(changes.added)} tensors of {base} changed{saved}"
    if lora.base and lora.base != base:
        yield f"adapter {lora.name} was trained on {lora.base}, it is merged into {base}"
