"""How the engine runs and how it draws its tokens: two records, refused where they are made."""

import re
from dataclasses import dataclass, field
from typing import Literal, get_args

Dtype = Literal["bfloat16", "float16", "float32"]
Attention = Literal["sdpa", "eager", "flash_attention_2"]

_DEVICE = re.compile(r"cpu|cuda(:\d+)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How the next token is drawn; temperature 0 is greedy. How many tokens at most is each prompt's own number."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0  # 0 keeps every token
    repetition_penalty: float = 1.0
    min_new_tokens: int = 0  # nothing ends an answer before, but its max_new_tokens
    stop: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        _at_least("temperature", self.temperature, 0)
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1, got {self.top_p}")
        _at_least("top_k", self.top_k, 0)
        if not 0 < self.repetition_penalty < float("inf"):
            raise ValueError(f"repetition_penalty must be above 0 and finite, got {self.repetition_penalty}")
        _at_least("min_new_tokens", self.min_new_tokens, 0)
        if isinstance(self.stop, str) or not all(self.stop):
            raise ValueError(f"stop must be a tuple of non-empty strings, got {self.stop!r}")
        _at_least("seed", self.seed, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """Where and how wide the engine runs; none of it but dtype and attention may change a greedy answer."""

    dtype: Dtype = "bfloat16"
    device: str = "cpu"
    attention: Attention = "sdpa"
    batch_size: int = 16  # prompts generated together
    look_ahead: int = 256  # prompts read ahead, so that those of like length share a batch
    tiles_per_call: int = 40  # tiles the vision tower sees at once, unless one image has more
    revision: str | None = None  # of a hub model: branch, tag or commit
    sampling: Sampling = field(default_factory=Sampling)

    def __post_init__(self) -> None:
        _one_of("dtype", self.dtype, get_args(Dtype))
        if not _DEVICE.fullmatch(self.device):
            raise ValueError(f"device must be cpu, cuda or cuda:N, got {self.device!r}")
        _one_of("attention", self.attention, get_args(Attention))
        for name in ("batch_size", "look_ahead", "tiles_per_call"):
            _at_least(name, getattr(self, name), 1)


def _at_least(name: str, value: float, least: int) -> None:
    if not least <= value < float("inf"):
        raise ValueError(f"{name} must be at least {least} and finite, got {value}")


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
