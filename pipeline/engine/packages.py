"""The packages that some settings need beside the engine's own: named, with the line that installs them."""

from importlib.util import find_spec

from schemas.engine import EngineSettings
from schemas.errors import Refused


def check_packages(settings: EngineSettings) -> None:
    """Raise ValueError where this machine lacks what the settings ask for."""
    if settings.attention == "flash_attention_2" and not is_there("flash_attn.flash_attn_interface"):
        raise Refused(
            "attention 'flash_attention_2' needs the package flash-attn on the machines with GPUs: "
            "pip install flash-attn --no-build-isolation, or attention 'sdpa'"
        )
    if settings.quantize in ("8bit", "4bit") and not is_there("bitsandbytes"):
        raise Refused(
            f"quantize {settings.quantize!r} needs the package bitsandbytes on the machines that generate: "
            "pip install bitsandbytes, or quantize 'fp8'"
        )


def is_there(module: str) -> bool:
    """Whether a module can be imported; two packages share the name `flash_attn`, and each has modules of its own."""
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # what it would be in
        return False
