"""The shapes of everything the engine runs: what its settings leave open is resolved here, for the device at hand."""

from dataclasses import dataclass

import torch

from pipeline.engine.kernels.choose import prefill_kernels
from pipeline.engine.kernels.layout import round_up
from pipeline.engine.kernels.pages import PAGE, num_pages
from pipeline.engine.network.block import DecoderShape
from pipeline.engine.network.load import LoadedModel
from pipeline.engine.network.memory import cache_shape, computing_bytes, max_sequence_length, prefill_tokens
from schemas.engine import DecodeKernel, EngineSettings, KvCacheDtype, PrefillKernels
from schemas.errors import Refused

_MAX_SLOTS = 256  # beyond, a decode step reads mostly keys and values: more slots save next to nothing
_SLOT_STEP = 16  # so that a little more or less free memory does not change the shapes, and with them the roundings
_MAX_PROMPTS_PER_PREFILL = 64
# Over several devices prefills follow each other: the first has left a device to the second while it is on the next.
# With so many in a row for each device, little of the time is lost to the first and the last of them.
_PREFILLS_IN_ROW = 4
_TYPICAL_LENGTH = 2048  # tokens of a sequence with a picture: there are as many slots as such sequences fit


@dataclass(frozen=True, slots=True, kw_only=True)
class Shapes:
    """The shapes of everything the engine runs; EngineSettings says what each is for."""

    slots: int  # sequences of a decode step, busy slots or idle ones
    num_batches: int  # of so many slots: each has its steps, which take turns on the devices of the network
    pages: int  # of the cache, shared by the sequences as each needs them
    kv_cache_dtype: KvCacheDtype | None  # of what is in them; None: the network's
    max_sequence_length: int  # tokens of prompt and answer together
    bucket: int
    prefill_tokens: int
    prefills_in_row: int  # prefills that wait until there is room for as many, or until nothing else is to do
    tiles_per_call: int
    max_prompts_per_prefill: int  # prompts that end in one prefill
    decode_kernel: DecodeKernel
    prefill_kernels: PrefillKernels

    @property
    def num_slots(self) -> int:
        """Return the slots of all batches."""
        return self.slots * self.num_batches


def resolve_shapes(model: LoadedModel, settings: EngineSettings) -> Shapes:
    """Resolve the shapes for this model on its device; raises Refused where one is impossible."""
    shape, on_gpu = model.decoder.shape, model.device.type == "cuda"
    longest = round_up(max_sequence_length(shape, settings), settings.bucket)
    num_tokens = prefill_tokens(settings) if on_gpu else settings.prefill_tokens or 1
    least = num_pages(longest)
    fit = settings.pages or (_pages_in_memory(model, longest, num_tokens, settings.kv_cache_dtype) if on_gpu else None)
    if fit is not None and fit < least:
        raise Refused(f"pages must be at least {least}, which hold the {longest} tokens of a row, got {fit}")
    num_batches = len(model.decoder.parts)
    slots = settings.slots or (_slots(fit, longest, num_batches) if on_gpu and fit else settings.batch_size)
    most = slots * num_batches * least
    return Shapes(
        slots=slots,
        num_batches=num_batches,
        pages=min(fit or most, most),
        kv_cache_dtype=settings.kv_cache_dtype,
        max_sequence_length=longest,
        bucket=settings.bucket,
        prefill_tokens=num_tokens,
        prefills_in_row=1 if num_batches == 1 else _PREFILLS_IN_ROW * num_batches,
        tiles_per_call=settings.tiles_per_call or (80 if on_gpu else 1),
        max_prompts_per_prefill=min(_MAX_PROMPTS_PER_PREFILL, slots),
        decode_kernel=_decode_kernel(settings, shape.head_dim, on_gpu),
        prefill_kernels=prefill_kernels(
            settings.prefill_kernels, model.device, model.decoder.dtype, fits=_fits_tiles(shape)
        ),
    )


def _decode_kernel(settings: EngineSettings, head_dim: int, on_gpu: bool) -> DecodeKernel:
    fits = head_dim >= 16 and head_dim & (head_dim - 1) == 0
    if settings.decode_kernel == "triton" and not fits:
        raise Refused(f"decode_kernel triton needs heads of a power of 2 from 16, the model's are {head_dim} wide")
    return settings.decode_kernel or ("triton" if on_gpu and fits else "sdpa")


def _fits_tiles(shape: DecoderShape) -> bool:
    return shape.head_dim in (64, 128) and not shape.hidden % 64 and not shape.intermediate % 64


def _pages_in_memory(model: LoadedModel, longest: int, num_tokens: int, kept: KvCacheDtype | None) -> int:
    """Count the pages that fit beside weights and one prefill; raises Refused where the longest sequence does not."""
    shape, dtype = model.decoder.shape, model.decoder.dtype
    computing = computing_bytes(shape, num_tokens, dtype.itemsize)
    layer_bytes = cache_shape(shape, 1, kept).num_bytes(dtype) // shape.layers
    parts = model.decoder.parts
    free = [_free_bytes(part.device) for part in parts]
    fit = min((room - computing) // (len(part.layers) * layer_bytes) for part, room in zip(parts, free, strict=True))
    least = num_pages(longest)
    if fit < least:
        raise Refused(
            f"capacity must leave room for one row, {longest} tokens are "
            f"{least * layer_bytes * shape.layers / 2**30:.1f} GiB and {sum(free) / 2**30:.1f} GiB are free beside the "
            "weights"
        )
    return fit


def _slots(pages: int, longest: int, num_batches: int) -> int:
    fit = pages * PAGE // min(_TYPICAL_LENGTH, longest) // num_batches
    return min(_MAX_SLOTS, fit // _SLOT_STEP * _SLOT_STEP or max(1, fit))


def _free_bytes(device: torch.device) -> int:
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
