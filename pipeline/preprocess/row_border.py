"""The row's border: whatever a row's own work raises becomes that row's failure, here and nowhere else.

What foreseen `RowError`s say is for people. Anything else, ours or a library's, fails the row under the exception's own
name, and its traceback goes to whoever keeps it: a row costs a row, and a bug is still found.
"""

import traceback
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol, TypeVar

from schemas.errors import Failure, RowError, Stage
from schemas.wording import shortened

T = TypeVar("T")

MOST_SHOWN = 2_000  # characters of a message: what a row holds may be in it, and a row may hold a book
_MOST_KEPT = 20_000  # characters of a traceback


class Watch(Protocol):
    """Is told how the rows of one unit are getting on, from any thread."""

    def begin(self, row: int, stage: Stage) -> None: ...  # this row is worked on from now on

    def end(self) -> None: ...  # no row is

    def keep(self, failure: Failure, trace: str) -> None: ...  # the traceback behind a failure nobody foresaw


class Nobody:
    """A Watch that listens to nothing."""

    def begin(self, row: int, stage: Stage) -> None:
        """Let the row take as long as it likes."""

    def end(self) -> None:
        """Nothing was begun."""

    def keep(self, failure: Failure, trace: str) -> None:
        """The failure itself says enough."""


NOBODY = Nobody()


def attempt(stage: Stage, step: Callable[[], T], watch: Watch) -> T | Failure:
    """Return what `step` returns, or the failure of the row it was for.

    A panic of a Rust library is no Exception, and is the row's all the same; a request to end the process is not.
    """
    try:
        return step()
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except RowError as error:
        return bounded(error.failure)
    except BaseException as error:
        failure = unforeseen(stage, error)
        watch.keep(failure, trace_of(error))
        return failure


def unforeseen(stage: Stage, error: BaseException) -> Failure:
    """Return the failure of a row whose work raised what is no RowError."""
    name = type(error).__name__
    message = f"{name}: {_said(error)} (its traceback is in .run/errors/ of the run folder)"
    return Failure(stage=stage, type=name, message=message)


def bounded(failure: Failure) -> Failure:
    """Return the failure with a message that can be written down: of a bounded length, and text throughout."""
    return replace(failure, message=readable(failure.message))


def readable(text: str, most: int = MOST_SHOWN) -> str:
    """Return the beginning of a text; halves of surrogate pairs, which no file takes, are written as escapes."""
    shown = text if len(text) <= most else f"{text[:most]}..."
    return shown.encode("utf-8", "backslashreplace").decode()


def trace_of(error: BaseException) -> str:
    """Return where an exception came from, and what led to it: frames and types, of their messages the beginning."""
    parts = []
    seen: set[int] = set()
    one: BaseException | None = error
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        parts.append("".join(traceback.format_tb(one.__traceback__)) + f"{type(one).__name__}: {_said(one)}\n")
        one = one.__cause__ or one.__context__
    text = "\nled to:\n\n".join(reversed(parts))
    return text if len(text) <= _MOST_KEPT else f"{text[: _MOST_KEPT // 2]}\n...\n{text[-_MOST_KEPT // 2 :]}"


def _said(error: BaseException) -> str:
    try:
        text = str(error)
    except Exception:  # an exception of somebody else's, whose own text cannot be had
        text = "it has no text"
    return shortened(text, 300)
