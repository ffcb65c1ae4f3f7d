"""Machine: what the machine that a job runs on lacks for it, found before Ray starts and before anything is loaded."""

from typing import Any

from pipeline.checkpoint import locate
from pipeline.engine.decoder import decoder_shape
from pipeline.engine.memory import check_memory, describe_memory, memory_of
from pipeline.engine.packages import check_packages, check_quantised, is_there
from pipeline.environment import check_gpus, cluster_address
from pipeline.preprocess.files import load_config
from pipeline.stages import engine_settings
from schemas.errors import Refused
from schemas.job import JobSettings


def check_machine(settings: JobSettings, cards: tuple[int, ...]) -> None:
    """Raise ValueError for a setting that the engine would refuse, a package that is missing, or `cards`, the bytes of
    each, that are too small. On a cluster only its own machines can tell the last two."""
    engine = engine_settings(settings, on_gpu=bool(cards) and settings.gpus != 0)
    config = load_config(locate(settings.model), settings.revision)
    text: Any = config.text_config  # typed as a dict as well, which it is no longer once loaded
    decoder_shape(text)  # refuses a network that the engine does not build
    if cluster_address():
        return
    check_gpus(settings.gpus, cards)
    check_packages(engine)
    if settings.dashboard and not is_there("aiohttp_cors"):  # of ray[default] alone
        raise Refused("--dashboard needs Ray's own packages for it: pip install 'ray[default]'")
    check_quantised(config, settings.model)
    if engine.device != "cpu":
        check_memory(config, engine, min(cards))


def describe_needs(settings: JobSettings) -> str:
    """The memory that a GPU needs for the model."""
    engine = engine_settings(settings, on_gpu=True)
    config = load_config(locate(settings.model), settings.revision)
    return describe_memory(memory_of(config, engine), engine)
