"""Make an engine of a job's settings."""

from typing import TYPE_CHECKING

from pipeline.environment import cpus_here
from pipeline.weights.hub import adapter_folder, locate
from schemas.engine import Dtype, EngineSettings, Sampling
from schemas.job import JobSettings

if TYPE_CHECKING:
    from pipeline.engine.engine import Engine as TorchEngine
    from pipeline.engine.reference.engine import ReferenceEngine

_STEP_SECONDS = 600.0  # of which a step takes one or two, and where kernels are compiled in it minutes


def load_engine(settings: JobSettings) -> "TorchEngine | ReferenceEngine":
    """Load the engine that the settings name, on this process's GPU or on all of its machine's cores."""
    import torch  # here: all who only hand units on have this module too, and an engine takes ten seconds to import

    from pipeline.engine.engine import Engine as TorchEngine
    from pipeline.engine.reference.engine import ReferenceEngine

    on_gpu = torch.cuda.is_available()
    if not on_gpu:
        torch.set_num_threads(cpus_here())
    if settings.engine == "transformers":
        return ReferenceEngine.load(locate(settings.model), settings=engine_settings(settings, on_gpu=on_gpu))
    return TorchEngine.load(locate(settings.model), settings=engine_settings(settings, on_gpu=on_gpu))


def engine_settings(settings: JobSettings, *, on_gpu: bool) -> EngineSettings:
    """Return the engine's part of a job's settings, with nothing left open; raises Refused."""
    return EngineSettings(
        dtype=dtype_of(settings, on_gpu=on_gpu),
        device="cuda" if on_gpu else "cpu",
        num_devices=settings.gpus_per_model if on_gpu else 1,
        attention=settings.attention,
        quantize=settings.quantize,
        kv_cache_dtype=settings.kv_cache_dtype,
        batch_size=settings.batch_size,
        slots=settings.slots,
        capacity=settings.capacity,
        image_tokens=settings.image_tokens,
        revision=settings.revision,
        adapter=None if settings.adapter is None else str(adapter_folder(settings.adapter)),
        sampling=sampling_of(settings),
    )


def dtype_of(settings: JobSettings, *, on_gpu: bool) -> Dtype:
    """Return the precision that is asked for, or the best where that is left open."""
    if settings.dtype != "auto":
        return settings.dtype
    return "bfloat16" if on_gpu else "float32"


def step_seconds(settings: JobSettings, *, on_gpu: bool) -> float:
    """Return the seconds that a step of the engine may take, 0 for no limit: a CPU takes what it takes."""
    if settings.step_seconds is None:
        return _STEP_SECONDS if on_gpu else 0
    return settings.step_seconds


def sampling_of(settings: JobSettings) -> Sampling:
    """Return the sampling of a job's settings; raises Refused."""
    return Sampling(
        temperature=settings.temperature,
        top_p=settings.top_p,
        top_k=settings.top_k,
        repetition_penalty=settings.repetition_penalty,
        cut_repetition=settings.cut_repetition,
        retry_penalty=settings.retry_penalty,
        min_new_tokens=settings.min_new_tokens,
        stop=settings.stop,
        seed=settings.seed,
        logprobs=settings.logprobs,
        form=settings.answer_form,
        row_forms=settings.json_schema_column is not None,
    )
