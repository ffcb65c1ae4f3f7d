"""Card: whether a GPU can do what the settings ask of it, told before weights are read."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from schemas.engine import Dtype, EngineSettings, Quantize
from schemas.errors import Refused

_BUILT = re.compile(r"(sm|compute)_(\d+)(\d)(a|f)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """A GPU's name and compute capability, and what PyTorch was built for, as `sm_90` or `compute_120`."""

    name: str
    capability: tuple[int, int]
    built_for: tuple[str, ...]

    @classmethod
    def of(cls, device: torch.device) -> "Card":
        """Return what PyTorch says of a device."""
        return cls(
            name=torch.cuda.get_device_name(device),
            capability=torch.cuda.get_device_capability(device),
            built_for=tuple(torch.cuda.get_arch_list()),
        )

    def why_not(self, dtype: Dtype, quantize: Quantize | None) -> str | None:
        """Return in one line what the card lacks for this precision, and what would do; None where it lacks nothing.

        Before 8.0 there are no bfloat16 products on tensor cores, before 8.9 none of float8 (CUDA C++ Programming
        Guide, compute capabilities).
        """
        its = f"{self.name} has {self.capability[0]}.{self.capability[1]}"
        if self.built_for and not any(_runs(one, self.capability) for one in self.built_for):
            kernels = ", ".join(self.built_for)
            return f"PyTorch must be built for the GPU: {its}, torch {torch.__version__} has kernels for {kernels}"
        if quantize == "fp8" and self.capability < (8, 9):
            return f"quantize 'fp8' needs a GPU of compute capability 8.9 or more, {its}; use '4bit'"
        if dtype == "bfloat16" and self.capability < (8, 0):
            return f"dtype 'bfloat16' needs a GPU of compute capability 8.0 or more, {its}; use 'float16'"
        return None


def check_cards(settings: EngineSettings, devices: Sequence[torch.device]) -> None:
    """Raise Refused where one of these devices cannot run what the settings ask for."""
    for device in devices:
        if device.type == "cuda" and (lack := Card.of(device).why_not(settings.dtype, settings.quantize)):
            raise Refused(lack)


def _runs(built: str, capability: tuple[int, int]) -> bool:
    """Tell whether a card runs what was built: machine code from its own minor version on, `compute` from any; what is
    for one card alone (`sm_90a`) on that card. What is named otherwise, as AMD's are, is not judged."""
    if (found := _BUILT.fullmatch(built)) is None:
        return True
    kind, major, minor, own = found.groups()
    least = int(major), int(minor)
    if kind == "compute":
        return capability >= least
    if own == "a":
        return capability == least
    return capability[0] == least[0] and capability[1] >= least[1]
