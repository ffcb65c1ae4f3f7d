"""Choose the kernels of a prefill for a device, and name the packages they come from."""

import os

import torch

from pipeline.engine.kernels.interface import Fused
from pipeline.engine.kernels.packages import is_there
from schemas.engine import PrefillKernels
from schemas.errors import Refused

PACKAGES = {"quack": "quack-kernels[cu13]", "flash_attn.cute": "flash-attn-4[cu13]"}  # by module, as they are installed


def prefill_kernels(
    asked: PrefillKernels | None, device: torch.device, dtype: torch.dtype, *, fits: bool = True
) -> PrefillKernels:
    """Choose a prefill's kernels on this device; `fits` tells whether the network's widths fit their tiles.

    Raises Refused where those that are asked for cannot run.
    """
    hopper = device.type == "cuda" and torch.cuda.get_device_capability(device) == (9, 0)
    runs = hopper and dtype.itemsize == 2 and fits
    if asked == "cute" and not runs:
        needs = "a GPU of compute capability 9.0, 16 bits, heads of 64 or 128 and layers of multiples of 64"
        raise Refused(f"prefill_kernels 'cute' need {needs}, got {dtype} on {device}")
    if asked == "torch" or not runs:
        return "torch"
    missing = missing_packages()  # here, as looking for a module imports the package that it is in
    if asked == "cute" and missing:
        names = " ".join(f"'{package}'" for package in missing)
        raise Refused(f"prefill_kernels 'cute' need packages that are not installed: pip install {names}")
    return "torch" if missing else "cute"


def missing_packages() -> list[str]:
    """Return the packages of the fused kernels that are not installed."""
    return [package for module, package in PACKAGES.items() if not is_there(module)]


def fused_kernels(kernels: PrefillKernels) -> Fused | None:
    """Return the kernels themselves; None for PyTorch's own."""
    if kernels == "torch":
        return None
    os.environ.setdefault("FLASH_ATTENTION_CUTE_DSL_CACHE_ENABLED", "1")  # read as its package is imported: later
    # processes of a machine need not compile again, as QuACK's do not
    from pipeline.engine.kernels.hopper import Hopper  # here, as its packages are for some GPUs alone

    return Hopper()
