"""The tensors that a checkpoint's network needs, and which of them each name in its files stands for.

Both are transformers' own: its module tree on the meta device, and the renamings that it loads by.
"""

import copy
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, cast

import torch
from transformers import LlavaNextConfig, LlavaNextForConditionalGeneration, PreTrainedConfig
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from schemas.errors import Refused

LAYERS = "model.language_model.layers."
_TOWER_LAYER = re.compile(r"model\.vision_tower\.(?:vision_model\.)?encoder\.layers\.(\d+)\.")
# Buffers that older versions of transformers saved, and the parts of a tower behind the features that are taken.
_BUFFERS = re.compile(r"(^|\.)(rotary_emb\.inv_freq|position_ids)$")
_BEHIND = re.compile(r"model\.vision_tower\.(?:vision_model\.)?(post_layernorm|head)\.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """The network that transformers would load a config's checkpoint into."""

    shapes: dict[str, tuple[int, ...]]
    tied: dict[str, str]  # a tensor and the one whose numbers it has
    renamings: list[Any]  # by which it is loaded, in order
    converters: list[Any]
    prefix: str
    is_unused: Callable[[str], bool]  # as `unused_by` has it

    def name_of(self, stored: str) -> str:
        """Return the network's name for a tensor that the files call `stored`; one that it has not got is no error."""
        shapes: Any = self.shapes
        name, _ = rename_source_key(stored, self.renamings, self.converters, self.prefix, shapes)
        if name not in shapes and stored in shapes:
            return stored
        return str(name)

    def missing(self, found: Iterable[str]) -> list[str]:
        """Return the tensors that answers need and that are not in `found`, tied ones as transformers ties them."""
        there = set(found)
        for one, other in self.tied.items():
            if one in there or other in there:
                there |= {one, other}
        return [name for name in self.shapes if name not in there and not self.is_unused(name)]


def without_wishes(config: PreTrainedConfig) -> PreTrainedConfig:
    """Return a config that says what its network is and no more how it is run, which is the job's matter.

    The attention that somebody trained with need not be installed here, and ours returns no weights of attention.
    """
    plain: Any = copy.deepcopy(config)
    plain._attn_implementation = "eager"
    plain.output_attentions = False
    return cast(PreTrainedConfig, plain)


def network_of(config: PreTrainedConfig) -> Network:
    """Return what a checkpoint of this config needs; raise Refused where there can be no such network."""
    try:
        return tensors_of(empty_network(config))
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError, ZeroDivisionError) as error:
        reason = " ".join(str(error).split())
        raise Refused(f"config.json must describe a network, this one cannot be built: {reason}") from error


def empty_network(config: PreTrainedConfig) -> LlavaNextForConditionalGeneration:
    """Return the network of a config without any numbers."""
    with torch.device("meta"):
        return LlavaNextForConditionalGeneration(cast(LlavaNextConfig, without_wishes(config)))


def tensors_of(built: LlavaNextForConditionalGeneration) -> Network:
    """Return the same of a network that is there."""
    rules = get_model_conversion_mapping(built)
    whole: Any = built
    return Network(
        shapes={name: tuple(tensor.shape) for name, tensor in whole.state_dict().items()},
        tied=dict(whole.all_tied_weights_keys),
        renamings=[rule for rule in rules if isinstance(rule, WeightRenaming)],
        converters=[rule for rule in rules if isinstance(rule, WeightConverter)],
        prefix=whole.base_model_prefix,
        is_unused=unused_by(whole.config),
    )


def quantization_of(config: PreTrainedConfig) -> object | None:
    """Return how a checkpoint's weights are packed, as its config says it; None where they are not."""
    text: Any = config.get_text_config()
    return getattr(config, "quantization_config", None) or getattr(text, "quantization_config", None)


def feature_layers(config: PreTrainedConfig) -> list[int]:
    """Return the layers of the tower whose states are the image's features; 0 is the state before the first layer."""
    whole: Any = config
    depth, taken = whole.vision_config.num_hidden_layers + 1, whole.vision_feature_layer
    return [layer % depth for layer in ([taken] if isinstance(taken, int) else taken)]


def unused_by(config: PreTrainedConfig) -> Callable[[str], bool]:
    """Return what tells known buffers, and the parts of the tower behind the features taken: no answer needs them."""
    used = max(feature_layers(config))

    def is_unused(name: str) -> bool:
        layer = _TOWER_LAYER.match(name)
        behind = layer is not None and int(layer[1]) >= used
        return behind or _BUFFERS.search(name) is not None or _BEHIND.match(name) is not None

    return is_unused
