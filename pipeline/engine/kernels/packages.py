"""Packages that only some settings need: they are named with the line that installs them."""

from importlib.util import find_spec
from typing import Any

from transformers import PreTrainedConfig
from transformers.quantizers.auto import AutoHfQuantizer

from pipeline.weights.network import quantization_of
from schemas.engine import EngineSettings
from schemas.errors import Refused
from schemas.packages import FLASH_ATTENTION, install_line


def check_packages(settings: EngineSettings) -> None:
    """Raise Refused where this machine lacks a package that the settings need."""
    if settings.attention == "flash_attention_2" and not is_there("flash_attn.flash_attn_interface"):
        raise Refused(
            "attention 'flash_attention_2' needs the package flash-attn on the machines with GPUs: "
            f"{FLASH_ATTENTION}, or attention 'sdpa'"
        )
    if settings.quantize in ("8bit", "4bit") and not is_there("bitsandbytes"):
        raise Refused(
            f"quantize {settings.quantize!r} needs the package bitsandbytes on the machines that generate: "
            f"{install_line('quantize')}, or quantize 'fp8'"
        )


def check_quantised(config: PreTrainedConfig, model: str) -> None:
    """Raise Refused where this machine lacks the package that a checkpoint's weights were packed by."""
    stored: Any = quantization_of(config)
    if stored is None:
        return
    try:
        AutoHfQuantizer.from_config(stored, pre_quantized=True).validate_environment(device_map=None, weights_only=True)
    except ImportError as error:
        reason = " ".join(str(error).split())
        raise Refused(f"model {model!r} is quantised by a package that is not here: {reason}") from error
    except (ValueError, RuntimeError, NotImplementedError):
        return  # what only a machine with cards can tell, it will


def is_there(module: str) -> bool:
    """Tell whether a module can be imported; two packages share the name `flash_attn`, each with modules of its own."""
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # of the package that it would be in
        return False
