"""llava-batch from Python: run a job, ask a model in a notebook, or answer in a Ray Data pipeline of one's own.

    import llava_batch

    run = llava_batch.run(llava_batch.Settings(input="photos/", output="out/"))
    answers = llava_batch.Model.load("demo").generate("photo.jpg", "What is this?")
    dataset.map_batches(llava_batch.Caption("demo"), batch_format="pyarrow")

Names are loaded when they are first used: to import this package takes no torch and no Ray.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llava_batch.model import Model
    from llava_batch.running import Answers, Run, run
    from llava_batch.settings import Settings
    from llava_batch.stage import Caption
    from pipeline.execution.executor import ErrorBudgetSpent
    from pipeline.execution.ray_errors import RunFailed
    from schemas.answer import Answer
    from schemas.errors import Refused

    __version__: str

_HOMES = {
    "Answer": "schemas.answer",
    "Answers": "llava_batch.running",
    "Caption": "llava_batch.stage",
    "ErrorBudgetSpent": "pipeline.execution.executor",
    "Model": "llava_batch.model",
    "Refused": "schemas.errors",
    "Run": "llava_batch.running",
    "RunFailed": "pipeline.execution.ray_data",
    "Settings": "llava_batch.settings",
    "run": "llava_batch.running",
}
__all__ = [
    "Answer",
    "Answers",
    "Caption",
    "ErrorBudgetSpent",
    "Model",
    "Refused",
    "Run",
    "RunFailed",
    "Settings",
    "__version__",
    "run",
]


def __getattr__(name: str) -> object:
    """Return a public name, loaded with what it needs."""
    if name == "__version__":
        found: object = import_module("pipeline.environment").version()
    elif name in _HOMES:
        found = getattr(import_module(_HOMES[name]), name)
    else:
        raise AttributeError(f"module 'llava_batch' has no attribute {name!r}: it has {', '.join(__all__)}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    """Return the public names."""
    return __all__
