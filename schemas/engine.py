"""Engine: records of how it runs, how it samples tokens and what it counts; refused where they are made."""

import re
from dataclasses import dataclass, field, fields
from typing import Literal, Protocol, get_args

from schemas.errors import Refused
from schemas.form import Form

Dtype = Literal["bfloat16", "float16", "float32"]
Attention = Literal["sdpa", "eager", "flash_attention_2"]
Quantize = Literal["8bit", "4bit", "fp8"]
DecodeKernel = Literal["sdpa", "triton"]
PrefillKernels = Literal["torch", "cute"]
KvCacheDtype = Literal["int8"]

_KERNELS = {"decode_kernel": get_args(DecodeKernel), "prefill_kernels": get_args(PrefillKernels)}

BLOCK = 16  # neighbouring tokens that attend to cached keys together

_DEVICE = re.compile(r"cpu|cuda(:\d+)?")
# Settings that the engine chooses for the device it finds where they are None.
_SIZES = ("slots", "pages", "capacity", "prefill_tokens", "tiles_per_call")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """Settings of how the next token is sampled; temperature 0 is greedy. Each prompt has its own limit of tokens."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0  # 0 keeps every token
    repetition_penalty: float = 1.0
    cut_repetition: bool = False  # an answer that repeats one cycle for ever ends there, see engine/repetition.py
    retry_penalty: float = 1.15  # the repetition penalty of the one retry of such an answer
    min_new_tokens: int = 0  # nothing ends an answer before, but its max_new_tokens
    stop: tuple[str, ...] = ()
    seed: int = 0
    ignore_eos: bool = False  # end tokens are sampled like any other: every answer has its max_new_tokens
    logprobs: int | None = None  # how many likely tokens are told of every step; None: not even the sampled one
    form: Form | None = None  # of every answer whose prompt has none of its own
    row_forms: bool = False  # whether prompts may have one

    def __post_init__(self) -> None:
        _at_least("temperature", self.temperature, 0)
        if not 0 < self.top_p <= 1:
            raise Refused(f"top_p must be above 0 and at most 1, got {self.top_p}")
        _at_least("top_k", self.top_k, 0)
        if not 0 < self.repetition_penalty < float("inf"):
            raise Refused(f"repetition_penalty must be above 0 and finite, got {self.repetition_penalty}")
        if not 1 <= self.retry_penalty < float("inf"):
            raise Refused(f"retry_penalty must be at least 1 and finite, got {self.retry_penalty}")
        _at_least("min_new_tokens", self.min_new_tokens, 0)
        if isinstance(self.stop, str) or not all(self.stop):
            raise Refused(f"stop must be a tuple of non-empty strings, got {self.stop!r}")
        for text in self.stop:
            if text.encode("utf-8", "ignore").decode() != text:  # bytes of a shell that are no text
                raise Refused(f"stop must be text that can be written as UTF-8, got {text!r}")
        _at_least("seed", self.seed, 0)
        if self.row_forms or (self.form is not None and self.form.has_end):
            self._check_ends()

    def _check_ends(self) -> None:
        """Refuse what would end an answer, or keep one from its end, elsewhere than its form does."""
        if self.stop or self.min_new_tokens:
            name = "stop" if self.stop else "min_new_tokens"
            raise Refused(f"{name} must be left out where answers have a form: the form says where an answer ends")

    @property
    def takes_forms(self) -> bool:
        """Tell whether any sequence may have to follow a form."""
        return self.form is not None or self.row_forms

    @property
    def retries(self) -> bool:
        """Tell whether an answer that was cut as repetition is tried once more."""
        return self.cut_repetition and self.retry_penalty > self.repetition_penalty

    @property
    def penalises(self) -> bool:
        """Tell whether any sequence is sampled under a repetition penalty."""
        return self.retries or self.repetition_penalty != 1


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """Settings of where and how wide the engine runs.

    In float32 none of it but dtype and attention changes a greedy answer. In bfloat16 another number of slots, bucket
    or prefill_tokens may, as other shapes round otherwise; with all of them equal an answer depends on its row alone.
    """

    dtype: Dtype = "bfloat16"
    device: str = "cpu"
    num_devices: int = 1  # devices that share the layers of one model: `device` and those after it
    attention: Attention = "sdpa"  # of the vision tower; the decoder has its own
    batch_size: int = 16  # prompts generated together where `slots` is None and the device is no GPU
    look_ahead: int = 1024  # prompts a caller's stream is read ahead, so that those of like length share a prefill
    slots: int | None = None  # of a decode step, of which several devices have as many; None: batch_size, or on a GPU
    # what its free memory holds
    pages: int | None = None  # of 64 tokens, for all slots; None: what they could need, on a GPU as far as memory goes
    capacity: int | None = None  # tokens of one prompt and its answer; None: the model's context, 4096 at most
    bucket: int = BLOCK  # a prompt takes its length in a prefill, rounded up to a multiple of this
    prefill_tokens: int | None = None  # of one prefill, padding included; None: 16896 on a GPU, 8448 over
    # several, else one prompt's
    tiles_per_call: int | None = None  # tiles that the vision tower encodes at once; None: 80 on a GPU, else 1
    compile: bool | None = None  # torch.compile for the decoder's layers; None: on a GPU
    cuda_graphs: bool = True  # the decode step as a CUDA graph on each device; not in bitsandbytes' 8 bits
    decode_kernel: DecodeKernel | None = None  # attention of the decode step; None: triton on a GPU, else sdpa
    prefill_kernels: PrefillKernels | None = None  # its products and attention; None: cute on Hopper with the packages
    quantize: Quantize | None = None  # of the decoder's layers alone; fp8 is our own, 8bit and 4bit are bitsandbytes'
    kv_cache_dtype: KvCacheDtype | None = None  # None: the network's; int8: with a scale a token and head
    image_tokens: float = 1.0  # the share of an image's tokens that is kept, by what the tower attends to
    revision: str | None = None  # of a hub model: branch, tag or commit
    adapter: str | None = None  # the folder of a LoRA adapter that is merged into the model as it is loaded
    sampling: Sampling = field(default_factory=Sampling)

    def __post_init__(self) -> None:
        _one_of("dtype", self.dtype, get_args(Dtype))
        if not _DEVICE.fullmatch(self.device):
            raise Refused(f"device must be cpu, cuda or cuda:N, got {self.device!r}")
        _one_of("attention", self.attention, get_args(Attention))
        _share_above_0("image_tokens", self.image_tokens)
        for name in ("num_devices", "batch_size", "look_ahead", "bucket", *_SIZES):
            if getattr(self, name) is not None:
                _at_least(name, getattr(self, name), 1)
        if self.bucket % BLOCK:
            raise Refused(f"bucket must be a multiple of {BLOCK}, got {self.bucket}")
        for name, own in (("decode_kernel", "sdpa"), ("prefill_kernels", "torch")):
            self._check_kernels(name, own)
        if self.quantize is not None:
            _one_of("quantize", self.quantize, get_args(Quantize))
        if self.kv_cache_dtype is not None:
            _one_of("kv_cache_dtype", self.kv_cache_dtype, get_args(KvCacheDtype))

    def _check_kernels(self, name: str, own: str) -> None:
        """Raise Refused for kernels that do not exist, and for any but PyTorch's own on a CPU."""
        asked = getattr(self, name)
        if asked is not None:
            _one_of(name, asked, _KERNELS[name])
        if asked not in (None, own) and self.device == "cpu":
            raise Refused(f"{name} must be {own} on a cpu, got {asked!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStatistics:
    """Counts of what an engine has done since it was made, which add up over engines and differ between two moments.

    Seconds are the device's and do not overlap; of several devices they are the mean. `teraflop` is 10^12 operations,
    padding not counted.
    """

    num_rows: int = 0  # prompts answered or failed here
    num_images: int = 0  # through the vision tower
    num_tiles: int = 0
    num_padded_tiles: int = 0  # tiles and the black ones that fill their calls
    num_prompt_tokens: int = 0  # of the rows; what prompts share counts for each of them
    num_prefilled_tokens: int = 0  # what prompts share counts once
    num_prefix_tokens: int = 0  # of the job's common beginning, copied to rows and not prefilled again
    num_padded_tokens: int = 0  # prefilled tokens and their padding
    num_answer_tokens: int = 0
    num_prefills: int = 0
    num_decode_steps: int = 0
    num_slot_steps: int = 0  # slots, summed over the decode steps
    num_busy_slot_steps: int = 0  # those with a sequence in them
    num_reused: int = 0  # prompts whose answer was that of another row with the same images and prompts
    num_retries: int = 0  # under penalty, of answers that were cut as repetition
    num_out_of_memory: int = 0
    vision_s: float = 0.0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    waiting_s: float = 0.0  # callers there, and nothing to do until they hand in more rows
    teraflop: float = 0.0
    possible_teraflop: float = 0.0  # what products alone would have been in the busy seconds; 0: not measured

    def __add__(self, other: "EngineStatistics") -> "EngineStatistics":
        return EngineStatistics(
            **{one.name: getattr(self, one.name) + getattr(other, one.name) for one in fields(self)}
        )

    def __sub__(self, other: "EngineStatistics") -> "EngineStatistics":
        return EngineStatistics(
            **{one.name: getattr(self, one.name) - getattr(other, one.name) for one in fields(self)}
        )

    @property
    def busy_s(self) -> float:
        """Return the seconds in which the device worked."""
        return self.vision_s + self.prefill_s + self.decode_s

    @property
    def prefill_padding(self) -> float:
        """Return the share of padding in the tokens of prefills."""
        return 1 - _share(self.num_prefilled_tokens, self.num_padded_tokens, empty=1.0)

    @property
    def tile_padding(self) -> float:
        """Return the share of padding in the tiles of the vision tower."""
        return 1 - _share(self.num_tiles, self.num_padded_tiles, empty=1.0)

    @property
    def slot_use(self) -> float:
        """Return the share of busy slots, mean over the decode steps."""
        return _share(self.num_busy_slot_steps, self.num_slot_steps)

    @property
    def utilisation(self) -> float:
        """Return the share of the device's product rate that useful arithmetic reached in the busy seconds."""
        return _share(self.teraflop, self.possible_teraflop)


def _share(part: float, whole: float, empty: float = 0.0) -> float:
    return part / whole if whole else empty


def _at_least(name: str, value: float, least: int) -> None:
    if not least <= value < float("inf"):
        raise Refused(f"{name} must be at least {least} and finite, got {value}")


def _share_above_0(name: str, value: float) -> None:
    if not 0 < value <= 1:
        raise Refused(f"{name} must be above 0 and at most 1, got {value}")


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise Refused(f"{name} must be one of {', '.join(allowed)}, got {value!r}")


class StepWatch(Protocol):
    """Is told of an engine's steps; what it does must cost next to nothing."""

    def begin(self) -> None: ...  # a step, which is over where another one begins or the engine rests

    def rest(self) -> None: ...


class Unwatched:
    """A watch that nobody keeps."""

    def begin(self) -> None:
        """Do nothing."""

    def rest(self) -> None:
        """Do nothing."""
