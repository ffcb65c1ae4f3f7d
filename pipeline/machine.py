"""Machine: what the machine that a job runs on lacks for it, found before Ray starts and before anything is loaded."""

import os
import shutil
import subprocess

from transformers import AutoConfig

from pipeline.checkpoint import locate
from pipeline.engine.memory import check_memory, describe_memory, memory_of
from pipeline.engine.packages import check_packages, check_quantised
from pipeline.stages import engine_settings
from schemas.job import JobSettings


def check_machine(settings: JobSettings, cards: tuple[int, ...]) -> None:
    """Raise ValueError for a setting that the engine would refuse, a package that is missing, or `cards`, the bytes of
    each, that are too small. On a cluster only its own machines can tell the last two."""
    engine = engine_settings(settings, on_gpu=bool(cards) and settings.gpus != 0)
    if "RAY_ADDRESS" in os.environ:
        return
    check_packages(engine)
    config = AutoConfig.from_pretrained(locate(settings.model), revision=settings.revision, trust_remote_code=False)
    check_quantised(config, settings.model)
    if engine.device != "cpu":
        check_memory(config, engine, min(cards))


def cards_here() -> tuple[int, ...]:
    """The memory of this machine's GPUs. Asked of the driver's own tool: torch would leave half a GB on a card."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return ()
    asked = [tool, "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    found = subprocess.run(asked, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=False)
    return tuple(int(line) * 2**20 for line in found.stdout.splitlines() if line.strip().isdigit())


def describe_needs(settings: JobSettings) -> str:
    """The memory that a GPU needs for the model."""
    engine = engine_settings(settings, on_gpu=True)
    config = AutoConfig.from_pretrained(locate(settings.model), revision=settings.revision, trust_remote_code=False)
    return describe_memory(memory_of(config, engine), engine)
