"""The packages that some settings need beside the engine's own: named, with the line that installs them."""

from importlib.util import find_spec

from schemas.engine import EngineSettings


def check_packages(settings: EngineSettings) -> None:
    """Raise ValueError where this machine lacks what the settings ask for."""
    if settings.attention == "flash_attention_2" and find_spec("flash_attn") is None:
        raise ValueError(
            "attention 'flash_attention_2' needs the package flash-attn on the machines with GPUs: "
            "pip install flash-attn --no-build-isolation, or attention 'sdpa'"
        )
    if settings.quantize in ("8bit", "4bit") and find_spec("bitsandbytes") is None:
        raise ValueError(
            f"quantize {settings.quantize!r} needs the package bitsandbytes on the machines that generate: "
            "pip install bitsandbytes, or quantize 'fp8'"
        )
