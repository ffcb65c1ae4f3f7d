"""Errors of Ray, in words that a person needs."""

import re

from ray.data.exceptions import SystemException
from ray.exceptions import OutOfMemoryError, RayActorError


class RunFailed(RuntimeError):
    """The run could not go on; what is done stays."""


class EngineNotLoaded(RunFailed):
    """No actor could make its engine: nothing that it is asked will be answered."""


def cause_of(error: BaseException) -> str:
    """Return the line that a person needs: what was raised in the actor, else what Ray says of the actor's death."""
    texts = [str(error)]
    while error.__cause__ is not None and not isinstance(error.__cause__, SystemException):
        error = error.__cause__
        texts.append(str(error))
    lines = [line.strip() for text in texts for line in text.splitlines() if line.strip()]
    raised = [line for line in lines if _RAISED.match(line)]
    return (raised or lines or [type(error).__name__])[-1]


_RAISED = re.compile(r"(?!ray\.)[\w.]+(Error|Exception|Unit|Refused): ")  # the last line of a traceback


def is_death(error: BaseException) -> bool:
    """Return whether the actor that was asked is gone, or out of reach; Ray has an error of its own for one that it has
    killed as its machine's memory ran out."""
    return isinstance(error, RayActorError | OutOfMemoryError)


def never_ran(error: BaseException) -> bool:
    """Return whether an actor died without a process that could have failed: nothing was loaded yet."""
    return "The actor never ran" in str(error)


def failed_to_load(error: BaseException) -> bool:
    """Return whether the actor raised while it was made, where others would as well."""
    return "error raised in its creation task" in str(error)


def died_with_its_machine(error: BaseException) -> bool:
    """Return whether an actor died of nothing that it did."""
    return never_ran(error) or "node has died" in str(error) or "node was terminated" in str(error)
