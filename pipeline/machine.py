"""Machine: what the machine that a job runs on lacks for it, found before Ray starts and before anything is loaded."""

from transformers import AutoConfig

from pipeline.checkpoint import locate
from pipeline.engine.memory import check_memory, describe_memory, memory_of
from pipeline.engine.packages import check_packages, check_quantised, is_there
from pipeline.environment import check_gpus, cluster_address
from pipeline.stages import engine_settings
from schemas.errors import Refused
from schemas.job import JobSettings


def check_machine(settings: JobSettings, cards: tuple[int, ...]) -> None:
    """Raise ValueError for a setting that the engine would refuse, a package that is missing, or `cards`, the bytes of
    each, that are too small. On a cluster only its own machines can tell the last two."""
    engine = engine_settings(settings, on_gpu=bool(cards) and settings.gpus != 0)
    if cluster_address():
        return
    check_gpus(settings.gpus, cards)
    check_packages(engine)
    if settings.dashboard and not is_there("aiohttp_cors"):  # of ray[default] alone
        raise Refused("--dashboard needs Ray's own packages for it: pip install 'ray[default]'")
    config = AutoConfig.from_pretrained(locate(settings.model), revision=settings.revision, trust_remote_code=False)
    check_quantised(config, settings.model)
    if engine.device != "cpu":
        check_memory(config, engine, min(cards))


def describe_needs(settings: JobSettings) -> str:
    """The memory that a GPU needs for the model."""
    engine = engine_settings(settings, on_gpu=True)
    config = AutoConfig.from_pretrained(locate(settings.model), revision=settings.revision, trust_remote_code=False)
    return describe_memory(memory_of(config, engine), engine)
